"""Keeps all owners of an element equal for any optimizer: checks before a step, broadcasts after it if needed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.comm.transfer import equalise
from sdp_compile.runtime.gradients.engine import GradientEngine, engine_of
from sdp_compile.runtime.gradients.reduce_scatter import ReduceScatter

REFUSED = {
    "Adafactor": "factors its state over whole rows and columns",
    "Muon": "orthogonalises whole matrices",
    "Lamb": "scales by the norm of whole parameters",
    "LAMB": "scales by the norm of whole parameters",
    "Shampoo": "preconditions whole matrices",
    "DistributedShampoo": "preconditions whole matrices",
    "LBFGS": "uses scalar products over all parameters",
}
"""Why optimizers are refused, by class name: their update of an element depends on others that a worker may not own."""

POSITION_INDEPENDENT = {
    optim.AdamW,
    optim.Adam,
    optim.Adagrad,
    optim.Adadelta,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
    optim.Rprop,
}
"""Optimizers whose update of a slice is bitwise the slice of the update: measured, default kernels, all dtypes."""

POSITION_INDEPENDENT_IN_FULL_PRECISION = {optim.SGD, optim.RMSprop, optim.ASGD}
"""The same in float32 and float64 only: in bfloat16 their kernels round a tensor's last elements differently."""

ELEMENTWISE = POSITION_INDEPENDENT | POSITION_INDEPENDENT_IN_FULL_PRECISION
"""Optimizers whose update of an element does not depend on other elements."""

_installed = False


def install_optimizer_guard() -> None:
    """Hooks the steps of all optimizers of this process, once. Optimizers without our parameters are left alone."""
    global _installed
    if not _installed:
        register_optimizer_step_pre_hook(_before_step)
        register_optimizer_step_post_hook(_after_step)
        _installed = True


def needs_broadcast(optimizer: Optimizer, unequal_devices: bool) -> bool:
    """Whether two owners could compute different bits from equal gradients.

    Args:
        optimizer: The optimizer that all owners use.
        unequal_devices: Whether the workers compute on different kinds of devices.
    """
    kind = type(optimizer)
    if unequal_devices or any(group.get("fused") for group in optimizer.param_groups):
        return True
    if kind in POSITION_INDEPENDENT_IN_FULL_PRECISION:
        dtypes = {parameter.dtype for group in optimizer.param_groups for parameter in group["params"]}
        return bool(dtypes & {torch.bfloat16, torch.float16})
    return kind not in POSITION_INDEPENDENT


def check_elementwise(kind: type[Optimizer]) -> None:
    """Raises `SDPError` unless optimizers of this class are known to be element-wise."""
    _refuse(kind)
    if kind not in ELEMENTWISE:
        raise SDPError(
            f"{kind.__name__} is not known to be element-wise, but the owners of a parameter step different elements "
            f"of it. Use one of {', '.join(sorted(known.__name__ for known in ELEMENTWISE))}."
        )


def _refuse(kind: type[Optimizer]) -> None:
    for base in kind.__mro__:
        if base.__name__ in REFUSED:
            raise SDPError(
                f"{kind.__name__} {REFUSED[base.__name__]}, but a worker holds only slices of the parameters. Use an "
                "element-wise optimizer: AdamW, Adam, SGD, RMSprop, ..."
            )


def _before_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    engines = engines_of(optimizer)
    if not engines:
        return
    _refuse(type(optimizer))
    reductions = [engine.reduction for engine in engines if isinstance(engine.reduction, ReduceScatter)]
    if not all(reduction.serves(optimizer) for reduction in reductions):
        raise SDPError(
            f"{type(optimizer).__name__} cannot step this model: it has a ShardedOptimizer, so its gradients are in "
            "shards. Step the ShardedOptimizer, or delete it."
        )
    if any(engine.pending for engine in engines):
        raise DistributedError(
            "The optimizer would step with gradients that were never synchronised: the last backward ran under "
            "no_sync(). Run the last backward of a step outside no_sync(), or call sync_gradients() before the step."
        )


def _after_step(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for engine, parameters in engines_of(optimizer).items():
        is_sharded = isinstance(engine.reduction, ReduceScatter)  # each value was computed by one worker
        if not is_sharded and needs_broadcast(optimizer, engine.unequal_devices):
            names = engine.names()
            position = {name: number for number, name in enumerate(engine.holdings.plan.state)}
            tensors: list[tuple[str, Tensor]] = []
            for parameter in sorted(parameters, key=lambda p: position[names[p]]):
                tensors.append((names[parameter], parameter))
                state = optimizer.state.get(parameter, {})
                for key in sorted(state):
                    if isinstance(state[key], Tensor) and state[key].shape == parameter.shape:
                        tensors.append((names[parameter], state[key]))
            equalise(tensors, engine.holdings, engine.groups)
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
