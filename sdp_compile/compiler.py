"""``sdp.compile(model, policy)``: capture, analyse, plan, lower, run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch import distributed as dist

from sdp_compile.capture import Methods, capture, plain_tensors
from sdp_compile.errors import DistributedError, PlanError
from sdp_compile.lowering import Lowered, lower
from sdp_compile.passes import Pass, Passes, bucket_bytes_of, reducing, resolve_pipeline
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.nodes import Launch, launched
from sdp_compile.planning.phases import planned_parts
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import Policy, Schedule, is_schedule, resolve_policy, resolve_schedule
from sdp_compile.runtime.comm.default_group import keep_no_default_group
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.comm.handshake import Handshake, fingerprint
from sdp_compile.runtime.module.connecting import connect
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.optimizer.guard import follow_schedule
from sdp_compile.runtime.optimizer.originals import remember_original
from sdp_compile.runtime.state.initialisation import slice_tensors
from sdp_compile.simulator import Cluster, simulate
from sdp_compile.structure.analysis import Analysis, analyse

Reduction = Literal["mean", "sum", "tokens"]
"""How the gradients of a unit's owners make up the unit's gradient."""

PolicyLike = str | Path | Mapping[str, Any] | Policy
"""A `Policy`, its name, the path of its TOML file, or its fields."""

PolicyOrSchedule = PolicyLike | Schedule
"""The same, or a `Schedule` in any of these forms."""


def sdp_compile(
    model: nn.Module,
    policy: PolicyOrSchedule = "auto",
    example_inputs: Any = None,
    *,
    methods: Methods = (),
    workers: int | None = None,
    rank: int | None = None,
    group: dist.ProcessGroup | None = None,
    lowering: LoweringKind = "sliced",
    passes: Passes = None,
    bucket_bytes: int | Cluster = DEFAULT_BUCKET_BYTES,
    comm_dtype: torch.dtype | None = None,
    check_finite: bool = False,
    reduction: Reduction = "mean",
    broadcast_from: int | None = 0,
) -> SDPModule:
    """Compiles ``model`` into this worker's subnetwork, a module that trains together with the other workers'.

    With a process group it is collective: all ranks call it, and either all return or all raise.

    Args:
        model: Any module that torch.export captures, also on the meta device. It is left as it is.
        policy: What is partitioned and how: a `Policy`, its name, the path of its TOML file, or its fields. A
            `Schedule`, in the same forms, begins with its first phase; call `SDPModule.advance` before each step.
        example_inputs: A tuple (positional arguments), a mapping (keyword arguments) or one tensor.
        methods: Methods that are compiled beside forward, such as ``("encode_image",)``. They share the partition
            and the parameters with it. Their example inputs are those with which forward calls them; for methods that
            it does not call, pass a mapping: ``{"decode": (latent,)}``.
        workers: Number of workers; by default that of ``group``.
        rank: This worker's number; by default that in ``group``. Without a process group, ``workers`` and ``rank``
            select a worker's subnetwork, which does not communicate.
        group: The workers' process group; by default the world, if there is one.
        lowering: ``"sliced"`` holds only what the worker owns; ``"masked"``, the reference, masks full-size parameters.
        passes: The passes that rewrite the graphs: None for the default ones, names of passes to add to them, the path
            of a TOML file, or a whole pipeline of `Pass` objects; see `sdp_compile.passes.resolve_pipeline`.
        bucket_bytes: Upper bound in bytes of one gradient reduction. Small ones start earlier in backward, large ones
            cost less latency. A `sdp_compile.simulator.Cluster` with the latency and bandwidth of the links chooses the
            size with which a simulated step is shortest; all ranks must describe the same one.
        comm_dtype: The dtype in which gradients travel; by default their own.
        check_finite: Whether a gradient that is infinite or NaN on any worker is an error on all.
        reduction: How the gradients of the P owners of a unit make up its gradient: ``"mean"``, their mean; ``"sum"``,
            N / P times their sum, for losses that are already divided by the tokens of all N workers; ``"tokens"``,
            their mean weighted by tokens, which `SDPModule.weighted` counts.
        broadcast_from: The rank whose parameters and buffers all workers start from, so that weights loaded on one rank
            are enough; a warning says so if the ranks had different ones. With None the values of each unit are those
            of its first owner, as for a model on the meta device.

    Returns:
        The module of this worker, with the original's names, modes and calling convention.

    Raises:
        SDPError: If the model, the policy, the passes or the process group do not fit. The error says what is wrong
            where, and what to do.

    Source: "Model Parallelism With Subnetwork Data Parallelism", arXiv 2507.09029, sections 3 and 4.
    """
    base = _base_group(group)
    with Handshake(base) as handshake:
        _check(model, lowering, bucket_bytes, comm_dtype)
        if checked_reduction(reduction) == "tokens" and base is None:
            raise PlanError(
                "reduction='tokens' needs the workers' process group, also with one worker. Start the script under "
                "torchrun and call torch.distributed.init_process_group() first."
            )
        _check_methods(methods)
        workers, rank = _seat(base, workers, rank)
        if broadcast_from is not None:
            broadcast_from = checked_rank(broadcast_from, workers, "broadcast_from")
        chosen, schedule = resolve_phases(policy)
        analysis = analyse(capture(model, example_inputs, methods))
        launch = _launch(base)
        plan = make_plan(analysis, chosen, workers, launch)
        check_phases(analysis, schedule, workers, launch)
        if isinstance(bucket_bytes, Cluster):
            bucket_bytes = simulate(plan, bucket_bytes).bucket_bytes
        pipeline = _pipeline(passes, lowering, chosen, bucket_bytes)
        if base is not None:
            plan.check_order(bucket_bytes_of(pipeline))
        lowered = lower(analysis, plan, rank, pipeline)
        module = assemble(lowered, model)
        follow_schedule(module, schedule)
        options = (
            f"passes: {', '.join(map(repr, pipeline))}",
            f"comm_dtype: {comm_dtype}",
            f"check_finite: {check_finite}",
            f"reduction: {reduction}",
            f"broadcast_from: {broadcast_from}",
            f"schedule: {None if schedule is None else schedule.describe()}",
            f"methods: {', '.join(analysis.capture.examples)}",
            f"node_size: {plan.node_size or workers}",
        )
        values = _values(model)
        handshake.agree(plan.digest, (*fingerprint(analysis.capture, values), *options))
    if base is not None:
        keep_no_default_group()
        connect(
            module, Groups(base), bucket_bytes_of(pipeline), comm_dtype, check_finite, reduction, broadcast_from, values
        )
        remember_original(model, module)
    return module


def plan(
    model: nn.Module,
    policy: PolicyOrSchedule = "auto",
    example_inputs: Any = None,
    *,
    methods: Methods = (),
    workers: int,
) -> Plan:
    """Returns the plan by which ``workers`` workers would train ``model``, without a process group.

    No weight is read, so the model may be on the meta device. ``print(plan.report())`` shows what each worker would
    hold, compute and send.

    Args:
        model: Any module that torch.export captures. It is left as it is.
        policy: What is partitioned and how: a `Policy`, its name, the path of its TOML file, or its fields. Of a
            `Schedule` it is the first phase's plan, and all others are checked.
        example_inputs: A tuple (positional arguments), a mapping (keyword arguments) or one tensor.
        methods: Methods that are compiled beside forward; see `sdp_compile`.
        workers: Number of workers.

    Raises:
        SDPError: If the model or the policy do not fit. The error says what is wrong where, and what to do.
    """
    _check_model(model, "plan()")
    _check_methods(methods)
    workers = checked_workers(workers)
    chosen, schedule = resolve_phases(policy)
    analysis = analyse(capture(model, example_inputs, methods))
    check_phases(analysis, schedule, workers)
    return make_plan(analysis, chosen, workers)


def resolve_phases(policy: PolicyOrSchedule) -> tuple[Policy, Schedule | None]:
    """Returns the policy to begin with, and the schedule if ``policy`` is one.

    Raises:
        PolicyError: If there is no such policy or schedule, a field is not valid, or a schedule of several phases does
            not know the number of steps.
    """
    if not is_schedule(policy):
        return resolve_policy(policy), None  # type: ignore[arg-type]
    schedule = resolve_schedule(policy)
    return schedule.policy_at(0), schedule


def check_phases(analysis: Analysis, schedule: Schedule | None, workers: int, launch: Launch | None = None) -> None:
    """Raises `PolicyError` if a later phase of a schedule has no plan, which would stop training in the middle."""
    if schedule is not None:
        planned_parts(analysis, schedule, workers, launch)


def assemble(lowered: Lowered, model: nn.Module) -> SDPModule:
    """Returns the module of one worker, with its slices of the values of ``model``."""
    tensors = slice_tensors(lowered.holdings, lowered.analysis.capture, _values(model))
    lowered.holdings.clear_unowned(tensors)
    device = next((one.device for one in tensors.values() if not one.is_meta), torch.device("cpu"))
    constants = {name: one.to(device) for name, one in lowered.holdings.constants.items()}
    return SDPModule(lowered, {**tensors, **constants})


def checked_workers(workers: Any) -> int:
    """Returns the number of workers; raises `PlanError` if it is not a positive integer."""
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise PlanError(f"workers must be a positive integer, got {workers!r}.")
    return workers


def checked_rank(rank: Any, workers: int, argument: str = "rank") -> int:
    """Returns the number of a worker; raises `PlanError` if it is not an integer below ``workers``."""
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < workers:
        raise PlanError(f"{argument} must be an integer from 0 to {workers - 1}, got {rank!r}.")
    return rank


def checked_reduction(reduction: Any) -> Reduction:
    """Returns the name of a gradient contract; raises `PlanError` if there is none of this name."""
    for name in get_args(Reduction):
        if reduction == name:
            return name  # type: ignore[no-any-return]
    raise PlanError(
        "reduction must be 'mean' (over owners), 'sum' (over all workers) or 'tokens' (mean weighted by tokens), got "
        f"{reduction!r}."
    )


def _values(model: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors of a model by canonical name."""
    return {**plain_tensors(model), **dict(model.named_parameters()), **dict(model.named_buffers())}


def _base_group(group: Any) -> dist.ProcessGroup | None:
    """Returns the workers' process group; None without one."""
    world = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    if group is None or world is None:
        return world
    if not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0:
        raise DistributedError(
            f"This process (rank {dist.get_rank(world)}) is not a member of the process group passed to sdp.compile(). "
            "Call sdp.compile() on its members only."
        )
    return group


def _launch(base: dist.ProcessGroup | None) -> Launch | None:
    """Returns what the launcher says about the nodes of the workers; None if they are not all of the world."""
    world = dist.group.WORLD
    if base is None or world is None or (base.size(), base.rank()) != (world.size(), world.rank()):
        return None
    return launched(base.rank(), base.size())


def _seat(base: dist.ProcessGroup | None, workers: int | None, rank: int | None) -> tuple[int, int]:
    """Returns the number of workers and this worker's number, both checked."""
    if base is None and workers is None and rank is None:
        raise PlanError(
            "sdp.compile() does not know the number of workers. Start the script under torchrun and call "
            "torch.distributed.init_process_group() first, or pass workers= and rank=."
        )
    if base is not None:
        size, mine = dist.get_world_size(base), dist.get_rank(base)
        if workers not in (None, size) or rank not in (None, mine):
            raise PlanError(
                f"This process is rank {mine} of {size} in its process group, but workers={workers} and rank={rank} "
                "were passed. Leave them out: they are for use without a process group."
            )
        return size, mine
    workers = checked_workers(1 if workers is None else workers)
    return workers, checked_rank(0 if rank is None else rank, workers)


def _pipeline(passes: Passes, lowering: LoweringKind, policy: Policy, bucket_bytes: int) -> tuple[Pass, ...]:
    pipeline = resolve_pipeline(passes, lowering, policy.masking, bucket_bytes)
    if reducing(pipeline).lowering != lowering:
        raise PlanError(
            f"passes is a pipeline for lowering={reducing(pipeline).lowering!r}, but lowering is {lowering!r}. Pass "
            "the lowering of the pipeline."
        )
    return pipeline


def _check_model(model: Any, function: str) -> None:
    if not isinstance(model, nn.Module):
        raise PlanError(f"sdp.{function} takes a torch.nn.Module, got {type(model).__name__}.")
    if isinstance(model, SDPModule):
        raise PlanError(f"The model is already compiled. Pass the original model to sdp.{function}.")


def _check_methods(methods: Any) -> None:
    for name in methods if isinstance(methods, Iterable) and not isinstance(methods, str) else ():
        if isinstance(name, str) and name != "forward" and name in dir(SDPModule):
            raise PlanError(
                f"methods names {name!r}, which compiled modules have themselves. Give the model's method another name."
            )


def _check(model: Any, lowering: Any, bucket_bytes: Any, comm_dtype: Any) -> None:
    _check_model(model, "compile()")
    if lowering not in ("sliced", "masked"):
        raise PlanError(f"lowering must be 'sliced' or 'masked', got {lowering!r}.")
    is_size = isinstance(bucket_bytes, int) and not isinstance(bucket_bytes, bool) and bucket_bytes > 0
    if not is_size and not isinstance(bucket_bytes, Cluster):
        raise PlanError(
            f"bucket_bytes must be a positive integer, or the sdp_compile.simulator.Cluster for which a size is "
            f"chosen, got {bucket_bytes!r}."
        )
    if comm_dtype is not None and not (isinstance(comm_dtype, torch.dtype) and comm_dtype.is_floating_point):
        raise PlanError(f"comm_dtype must be a floating-point dtype, got {comm_dtype!r}.")
