"""``model.replan(policy, optimizer)``: another plan for the same model and workers, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from sdp_compile.checkpoint.buffers import own_tensors, saved_tensors
from sdp_compile.checkpoint.model import CompiledModel, model_of
from sdp_compile.checkpoint.states import OptimizerStates, kind_of, optimizer_states
from sdp_compile.checkpoint.team import Team
from sdp_compile.errors import SDPError
from sdp_compile.lowering import Lowered
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.moves import Reslicing, Traffic, same_owners, traffic
from sdp_compile.replanning.exchange import Errand, exchange
from sdp_compile.replanning.optimizers import follower
from sdp_compile.replanning.plans import checked_plan, relowered
from sdp_compile.replanning.stores import Slices
from sdp_compile.runtime.comm.meeting import meet
from sdp_compile.runtime.gradients.hooks import ArrivalHook, Hook
from sdp_compile.runtime.levels.equalise import equalise
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.optimizer.originals import remember_replaced
from sdp_compile.runtime.optimizer.owner_check import forget_parameters
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer
from sdp_compile.runtime.owners.comparison import check_values
from sdp_compile.runtime.state.full_state import device_of
from sdp_compile.runtime.state.initialisation import slice_tensors

WHAT = "model.replan()"


@torch.no_grad()
def replan(module: Any, policy: Any, optimizer: Optimizer | Sequence[Optimizer] | None = None) -> Traffic:
    """Gives a compiled module another plan. Collective; see `SDPModule.replan`.

    Until all workers have everything that they need, nothing is changed.

    Args:
        module: The compiled module.
        policy: A policy as `sdp_compile.sdp_compile` takes it, or a plan of this model.
        optimizer: The optimizers of its parameters.

    Returns:
        What the workers have sent each other.

    Raises:
        SDPError: If the policy or plan does not fit, gradients are not synchronised, or an optimizer cannot follow.
        DistributedError: If the workers do not agree, or there is no process group.
    """
    model = model_of(module, WHAT)
    assert isinstance(module, SDPModule) and isinstance(model, CompiledModel)
    optimizers = [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    peers, team, digest = model.peers, Team(model.peers, WHAT), ""
    if peers is not None:
        meet(f"in {WHAT}", peers.groups)
    with team.together(lambda: digest, what="plan or optimizer"):
        _check_idle(module)
        plan = checked_plan(module, policy)
        lowered = relowered(module, plan)
        _check_hooks(module, lowered)
        described = [optimizer_states(model, one) for one in optimizers]
        digest = " ".join([plan.digest, *map(kind_of, optimizers)])
    if peers is not None:
        check_values(peers.engine, f"in {WHAT}")
    everyone = team.gather([_tensors(module), *described])
    with team.together():
        facts = {name: fact for one in everyone for name, fact in one[0].items()}
        new = _new_tensors(module, lowered, facts)
        parameters = {name: new[name] for name in plan.state if isinstance(new.get(name), nn.Parameter)}
        followers = [
            follower(one, model, states, lowered.holdings, parameters)  # type: ignore[arg-type]
            for number, one in enumerate(optimizers, 1)
            if (states := OptimizerStates.merged([parts[number] for parts in everyone], model)) is not None
        ]
    change = _reslicing(module, lowered, any(isinstance(one, ShardedOptimizer) for one in optimizers))
    errands = [*_values(module, model, lowered, new, facts, change)]
    for one in followers:
        errands += one.errands(change)
    exchange(errands, None if peers is None else peers.groups, module.rank, device_of(module))
    _swap(module, lowered, new)
    for one in followers:
        one.adopt()
    for known in optimizers:
        forget_parameters(known)
    return traffic(module.workers, ((move, errand.dtype.itemsize) for errand in errands for move in errand.moves))


def _check_idle(module: SDPModule) -> None:
    """Raises `SDPError` where a change of plan would lose something."""
    if torch._C._current_graph_task_id() != -1:
        raise SDPError(f"{WHAT} was called inside backward. Call it after the optimizer's step.")
    if module.peers is None:
        return
    engine = module.peers.engine
    if not engine.switch.is_on:
        raise SDPError(f"{WHAT} was called within no_sync(). Call it after the optimizer's step.")
    if engine.pending:
        raise SDPError(
            f"{WHAT} would drop gradients that were accumulated under no_sync() and not synchronised. Run the last "
            "backward of a step outside no_sync(), and step the optimizer before."
        )


def _check_hooks(module: SDPModule, lowered: Lowered) -> None:
    """Raises `SDPError` if the user has hooked a parameter of which other workers will hold other parts."""
    for name, parameter in module.named_parameters():
        if name not in module.plan.state or same_owners(module.plan, lowered.plan, name):
            continue
        hooks = [*(parameter._backward_hooks or {}).values()]
        hooks += [*(getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values()]
        if not all(isinstance(hook, (Hook, ArrivalHook)) for hook in hooks):
            raise SDPError(
                f"{name!r} has a hook, and its workers will hold other parts of it. Remove the hook before {WHAT}, and "
                "register it on the new parameters."
            )


def _tensors(module: SDPModule) -> dict[str, tuple[str, bool]]:
    """Returns the dtype of each tensor that this worker holds, and whether it is trained."""
    held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        name: (str(held[name].dtype).removeprefix("torch."), held[name].requires_grad)
        for name in module.plan.state
        if name in held
    }


def _new_tensors(module: SDPModule, lowered: Lowered, facts: Mapping[str, tuple[str, bool]]) -> dict[str, Tensor]:
    """Returns what this worker will hold, by name: zeros, constants, and parameters that stay as they are."""
    after, held = lowered.holdings, {**dict(module.named_parameters()), **dict(module.named_buffers())}
    capture, device = lowered.analysis.capture, device_of(module)
    result: dict[str, Tensor] = {name: one.to(device) for name, one in after.constants.items()}
    fixed = {name: tensor for name, tensor in capture.state.items() if tensor.kind == "constant"}
    result |= slice_tensors(after, replace(capture, state=fixed), {}, device)
    for one in after.held():
        if one.source in fixed:
            continue
        old, (dtype, is_trained) = held.get(one.name), facts[one.source]
        is_parameter = after.plan.state[one.source].kind == "parameter" and one.name == one.source
        if is_parameter and old is not None and _stays(module.holdings, after, one.name):
            result[one.name] = old
            continue
        place = device if old is None else old.device
        value = torch.zeros(one.region.shape, dtype=getattr(torch, dtype), device=place)
        result[one.name] = nn.Parameter(value, is_trained) if is_parameter else value
        if is_parameter and old is not None:
            vars(result[one.name]).update(vars(old))
    return result


def _stays(before: Holdings, after: Holdings, name: str) -> bool:
    """Whether a worker's parameter holds the same elements by two plans."""
    old, new = before.plan.kept(name, before.rank), after.plan.kept(name, after.rank)
    same = old is not None and new is not None and all(map(np.array_equal, old, new))
    return same and (before.lowering == "sliced" or before.plan.masking == after.plan.masking)


def _reslicing(module: SDPModule, lowered: Lowered, is_sharded: bool) -> Reslicing:
    if not is_sharded or module.peers is None:
        return Reslicing(module.plan, lowered.plan)
    size = module.peers.bucket_bytes
    return Reslicing(module.plan, lowered.plan, (module.plan.splits(size), lowered.plan.splits(size)))


def _values(
    module: SDPModule,
    model: CompiledModel,
    lowered: Lowered,
    new: Mapping[str, Tensor],
    facts: Mapping[str, tuple[str, bool]],
    change: Reslicing,
) -> list[Errand]:
    """Returns how parameters and buffers move. Collective: what differs between owners is merged first."""
    state, sources = module.plan.state, saved_tensors(model)
    moves = {name: change.values(name) for name, tensor in state.items() if tensor.kind != "constant"}
    if module.peers is not None:
        merged = own_tensors(model)
        differing = [
            name
            for name, parts in moves.items()
            if state[name].kind == "buffer" and any(move.before.holders != move.after.holders for move in parts)
        ]
        sources |= {name: sources[name].clone() for name in differing if name in sources and name not in merged}
        named = [(name, sources[name]) for name in differing if name in sources and name not in merged]
        equalise(named, module.holdings, module.peers.route)
    before, after = Slices(module.holdings, sources), Slices(lowered.holdings, new)
    return [
        Errand(parts, getattr(torch, facts[name][0]), before, after, new.get(name) is sources.get(name, parts))
        for name, parts in moves.items()
    ]


def _swap(module: SDPModule, lowered: Lowered, new: dict[str, Tensor]) -> None:
    lowered.holdings.clear_unowned(new)
    for name, parameter in module.named_parameters():
        parameter.grad = None
        if new.get(name) is not parameter and name in module.plan.state:
            remember_replaced(parameter, name)
    module.follow_plan(lowered, new)
