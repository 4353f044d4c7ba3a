"""Keeps all owners of an element equal for any optimizer: checks before a step, broadcasts after it if needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial, wraps
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.policies import Schedule
from sdp_compile.runtime.full_results.statistic import SliceStatistic, refuse
from sdp_compile.runtime.gradients.engine import GradientEngine, engine_of
from sdp_compile.runtime.gradients.reduce_scatter import ReduceScatter
from sdp_compile.runtime.levels.equalise import equalise
from sdp_compile.runtime.optimizer.origin import check_origin
from sdp_compile.runtime.optimizer.originals import refuse_original, refuse_replaced
from sdp_compile.runtime.optimizer.owner_check import check_step
from sdp_compile.runtime.owners import rates
from sdp_compile.runtime.owners.division import is_stand_in
from sdp_compile.runtime.probing.elementwise import check_elementwise, needs_broadcast

_installed = False


def install_optimizer_guard() -> None:
    """Hooks the steps of all optimizers of this process, once. Optimizers without our parameters are left alone."""
    global _installed
    if not _installed:
        register_optimizer_step_pre_hook(_before_step)
        register_optimizer_step_post_hook(_after_step)
        _installed = True


def follow_schedule(model: rates.Rated, schedule: Schedule | None) -> None:
    """Gives a model a schedule, and lets all optimizers of its parameters follow its learning rates by owners."""
    vars(model)["schedule"] = schedule
    rates.watch(model)
    install_optimizer_guard()


@torch.compiler.disable(reason="All workers compare what they step; compile optimizer.step without fullgraph=True.")  # type: ignore[untyped-decorator]
def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if is_stand_in(optimizer):  # of an optimizer whose step calls that of its base class
        return None
    result = _checked_step(optimizer, args, kwargs)
    rates.prepare(optimizer)
    return result


def _checked_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Checks a step, or returns its arguments with a closure that does. Collective."""
    refuse_replaced(optimizer)
    engines = engines_of(optimizer)
    if not engines:
        refuse_original(optimizer)
        return None
    check_origin(optimizer)
    reductions = [engine.reduction for engine in engines if isinstance(engine.reduction, ReduceScatter)]
    if not all(reduction.serves(optimizer) for reduction in reductions):
        raise SDPError(
            f"{type(optimizer).__name__} cannot step this model: it has a ShardedOptimizer, so its gradients are in "
            "shards. Step the ShardedOptimizer, or delete it."
        )
    if not reductions:  # a ShardedOptimizer has checked the optimizer that it wraps
        device = next(parameters[0].device for parameters in engines.values())
        closure = (*args[1:], *kwargs.values())
        check_elementwise(optimizer, device, closure=any(value is not None for value in closure))
    # A closure computes the gradients that the step applies, so they are checked when it has run.
    with_check = rates.with_closure(args, kwargs, partial(_checked, optimizer))
    if with_check is None:
        _check_gradients(optimizer)
    return with_check


def _checked(optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
    """Returns a closure that checks the gradients after its first call in a step."""
    calls = count()

    @wraps(closure)
    def checked() -> Any:
        loss = closure()
        if next(calls) == 0:
            _check_gradients(optimizer)
        return loss

    return checked


def _check_gradients(optimizer: Optimizer) -> None:
    """Raises `DistributedError` on all workers unless they are about to apply the same. Collective."""
    engines = engines_of(optimizer)
    if torch._C._current_graph_task_id() != -1:
        raise DistributedError(
            "The optimizer would step inside backward, before the gradients are averaged over their owners: a hook on "
            "a gradient or parameter steps it. Step it when backward() has returned."
        )
    if any(engine.pending for engine in engines):
        raise DistributedError(
            "The optimizer would step with gradients that were never synchronised: the last backward ran under "
            "no_sync(). Run the last backward of a step outside no_sync(), or call sync_gradients() before the step."
        )
    for parameters in engines.values():
        for parameter in parameters:
            if isinstance(parameter.grad, SliceStatistic):
                refuse(parameter.grad.what)
    began = time.thread_time()
    check_step(optimizer, list(engines))
    next(iter(engines)).groups.traffic.seconds["check"] += time.thread_time() - began


@torch.compiler.disable(reason="All workers compare what they step; compile optimizer.step without fullgraph=True.")  # type: ignore[untyped-decorator]
def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if is_stand_in(optimizer):
        return
    for engine, parameters in engines_of(optimizer).items():
        is_sharded = isinstance(engine.reduction, ReduceScatter)  # each value was computed by one worker
        if not is_sharded and needs_broadcast(optimizer, parameters[0].device, engine.unequal_devices):
            names = engine.names()
            position = {name: number for number, name in enumerate(engine.holdings.plan.state)}
            tensors: list[tuple[str, Tensor]] = []
            for parameter in sorted(parameters, key=lambda p: position[names[p]]):
                tensors.append((names[parameter], parameter))
                state = optimizer.state.get(parameter, {})
                for key in sorted(state):
                    if isinstance(state[key], Tensor) and state[key].shape == parameter.shape:
                        tensors.append((names[parameter], state[key]))
            equalise(tensors, engine.holdings, engine.route)
        if engine.refresher is not None:
            engine.refresher.refresh()


def engines_of(optimizer: Optimizer) -> dict[GradientEngine, list[nn.Parameter]]:
    """Returns the engines with more than one worker that average this optimizer's gradients, and their parameters."""
    result: dict[GradientEngine, list[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            engine = engine_of(parameter)
            if engine is not None and engine.groups.workers > 1:
                result.setdefault(engine, []).append(parameter)
    return result
