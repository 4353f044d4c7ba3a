"""``sdp_compile(model, policy)``: capture, analyse, partition, plan, rewrite, run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.errors import DistributedError, PlanError
from sdp_compile.ir.program import Capture, Program
from sdp_compile.passes import Lowering, LoweringKind, lower, pipeline
from sdp_compile.passes.mask_parameters import clear_unowned, mask_tensors, with_masks
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.planning.plan import Plan, make_plan
from sdp_compile.planning.unowned import with_rests
from sdp_compile.policies import Policy, resolve_policy
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.comm.handshake import Handshake, fingerprint
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.peers import Runtime
from sdp_compile.runtime.state.initialisation import slice_tensors
from sdp_compile.structure.analysis import analyse
from sdp_compile.structure.blocks.finding import Blocks
from sdp_compile.structure.families import Structure


def sdp_compile(
    model: nn.Module,
    policy: str | Path | Mapping[str, Any] | Policy = "auto",
    example_inputs: Any = None,
    *,
    workers: int | None = None,
    rank: int | None = None,
    group: dist.ProcessGroup | None = None,
    lowering: LoweringKind = "sliced",
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    comm_dtype: torch.dtype | None = None,
    check_finite: bool = False,
) -> SDPModule:
    """Compiles ``model`` into this worker's subnetwork, a module that trains together with the other workers'.

    Args:
        model: any module that torch.export captures; on the meta device too. It is left as it is.
        policy: what is partitioned and how: a `Policy`, its name, the path of its TOML file, or its fields.
        example_inputs: a tuple (positional arguments), a mapping (keyword arguments) or one tensor.
        workers, rank: the number of workers and this one's number; by default those of ``group``. Without a process
            group they give that worker's subnetwork, which communicates with nobody.
        group: the workers' process group; default: the world, if there is one.
        lowering: ``sliced`` holds only what the worker owns; ``masked``, the reference, masks full-size parameters.
        bucket_bytes: upper bound of the size of one gradient reduction: small ones start earlier in backward, large
            ones cost less latency.
        comm_dtype: the dtype in which gradients travel; default: their own.
        check_finite: whether each backward ends in an error on all ranks where a worker's gradient is infinite or NaN.

    Raises an `SDPError` that names the part of the model or policy and what to do; with a process group all ranks
    raise together. Source: "Model Parallelism With Subnetwork Data Parallelism", arXiv 2507.09029, sections 3 and 4.
    """
    base = _base_group(group)
    with Handshake(base) as handshake:
        _check(model, lowering, bucket_bytes, comm_dtype)
        workers, rank = _seat(base, workers, rank)
        chosen = resolve_policy(policy)
        captured = capture(model, example_inputs)
        structure, blocks = analyse(captured)
        plan = make_plan(captured, structure, chosen, workers)
        module = compile_rank(model, captured, structure, blocks, plan, rank, lowering, bucket_bytes)
        options = (
            f"lowering: {lowering}",
            f"bucket_bytes: {bucket_bytes}",
            f"comm_dtype: {comm_dtype}",
            f"check_finite: {check_finite}",
        )
        handshake.agree(plan.digest, (*fingerprint(captured), *options))
    if base is not None:
        module.runtime = Runtime(module, Groups(base), bucket_bytes, comm_dtype, check_finite)
    return module


def compile_rank(
    model: nn.Module,
    captured: Capture,
    structure: Structure,
    blocks: Blocks,
    plan: Plan,
    rank: int,
    lowering: LoweringKind = "sliced",
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
) -> SDPModule:
    """The part of `sdp_compile` that differs between ranks: rewrites the programs and slices the model's tensors."""
    values = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    tensors = slice_tensors(captured, plan, rank, values, lowering=lowering)
    if lowering == "masked":
        if plan.masking == "forward":
            clear_unowned(tensors, plan, rank)
        masks = mask_tensors(plan, rank)
        captured, tensors = with_masks(captured, masks), {**tensors, **masks}
    else:
        captured = with_rests(captured, plan, rank)
    context = Lowering(captured, structure, plan, rank, lowering, blocks)
    passes = pipeline(lowering, bucket_bytes, plan.masking)
    programs: dict[str, Program] = {
        mode: lower(program, context, passes) for mode, program in captured.programs.items()
    }
    return SDPModule(captured, plan, rank, programs, tensors, lowering, passes)


def _base_group(group: Any) -> dist.ProcessGroup | None:
    """The workers' process group; None where there is none."""
    world = dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
    if group is None or world is None:
        return world
    if not isinstance(group, dist.ProcessGroup) or dist.get_rank(group) < 0:
        raise DistributedError(
            f"This process (rank {dist.get_rank(world)}) is not a member of the process group passed to sdp_compile(); "
            "call sdp_compile() on its members only."
        )
    return group


def _seat(base: dist.ProcessGroup | None, workers: int | None, rank: int | None) -> tuple[int, int]:
    """The number of workers and this one's number, checked."""
    if base is None and workers is None and rank is None:
        raise PlanError(
            "sdp_compile() does not know the number of workers: start the script under torchrun and call "
            "torch.distributed.init_process_group() first, or pass workers= and rank=."
        )
    if base is not None:
        size, mine = dist.get_world_size(base), dist.get_rank(base)
        if workers not in (None, size) or rank not in (None, mine):
            raise PlanError(
                f"This process is rank {mine} of {size} in its process group, but workers={workers} and rank={rank} "
                "were passed. Leave them out; they are for use without a process group."
            )
        return size, mine
    workers, rank = 1 if workers is None else workers, 0 if rank is None else rank
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise PlanError(f"workers={workers!r} is no number of workers; it must be an integer of at least 1.")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < workers:
        raise PlanError(f"rank={rank!r} is none of the {workers} workers; they are numbered 0 to {workers - 1}.")
    return workers, rank


def _check(model: Any, lowering: Any, bucket_bytes: Any, comm_dtype: Any) -> None:
    if not isinstance(model, nn.Module):
        raise PlanError(f"sdp_compile() takes a torch.nn.Module as its model, not {type(model).__name__}.")
    if isinstance(model, SDPModule):
        raise PlanError("The model is compiled already: pass the original one to sdp_compile().")
    if lowering not in ("sliced", "masked"):
        raise PlanError(f"lowering={lowering!r} does not exist; it is 'sliced' (the default) or 'masked'.")
    if isinstance(bucket_bytes, bool) or not isinstance(bucket_bytes, int) or bucket_bytes < 1:
        raise PlanError(f"bucket_bytes={bucket_bytes!r} is no size; it must be an integer of at least 1.")
    if comm_dtype is not None and not (isinstance(comm_dtype, torch.dtype) and comm_dtype.is_floating_point):
        raise PlanError(f"comm_dtype={comm_dtype!r} is no floating-point dtype.")
