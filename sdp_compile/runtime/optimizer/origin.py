"""Says in an optimizer's ``state_dict()`` whose slices its state belongs to, and refuses the state of another worker.

The states of all workers often have the same shapes, so PyTorch would load any of them anywhere. The mark is an option
of the parameter groups, because any optimizer takes over the options that it loads, also one that has never stepped and
has no hook of ours. It is checked and removed before the next step.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer

from sdp_compile.errors import SDPError
from sdp_compile.planning.holdings import Holdings
from sdp_compile.runtime.gradients.engine import engine_of
from sdp_compile.runtime.state.origin import KEY, described, fits, mark_of

_watched: weakref.WeakSet[Optimizer] = weakref.WeakSet()


def check_origin(optimizer: Optimizer) -> None:
    """Raises `SDPError` if an optimizer has loaded the state of other slices; marks its states from now on.

    Args:
        optimizer: An optimizer of compiled modules that is about to step.
    """
    # Wrappers such as timm's Lookahead have no hooks of their own: their state is that of the optimizer within.
    if optimizer not in _watched and hasattr(optimizer, "_optimizer_state_dict_post_hooks"):
        _watched.add(optimizer)
        optimizer.register_state_dict_post_hook(_mark)
        optimizer.register_load_state_dict_pre_hook(_check)
        optimizer.register_load_state_dict_post_hook(_check_shapes)
        _check_shapes(optimizer)
    if any(KEY in group for group in optimizer.param_groups):
        _check(optimizer, {"param_groups": optimizer.param_groups})
        for group in optimizer.param_groups:
            group.pop(KEY, None)


def _mark(optimizer: Optimizer, state: dict[str, Any]) -> None:
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        holdings = _holdings(group)
        if holdings is not None:
            saved[KEY] = mark_of(holdings)


def _check(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    for group, loaded in zip(optimizer.param_groups, state["param_groups"], strict=False):
        holdings = _holdings(group)
        if holdings is not None and KEY in loaded and not fits(loaded[KEY], holdings):
            raise SDPError(
                f"The state that {type(optimizer).__name__} loads is that of {described(loaded[KEY])}, but this is "
                f"{described(mark_of(holdings))}, which holds other slices. Load the file that this rank saved, or use "
                "full_optimizer_state_dict() and load_full_optimizer_state_dict()."
            )


def _check_shapes(optimizer: Optimizer) -> None:
    """Raises `SDPError` if an optimizer has loaded the state of the original model's optimizer."""
    engines = {engine for parameter in optimizer.state if (engine := engine_of(parameter)) is not None}
    for engine in engines:
        for parameter, name in engine.names().items():
            whole = engine.holdings.plan.state[name].shape
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.shape == whole != parameter.shape:
                    raise SDPError(
                        f"{type(optimizer).__name__} has loaded a state with the shapes of the original model ({key!r} "
                        f"of {name!r} is {list(whole)}), but this worker holds slices. Load a full state with "
                        "load_full_optimizer_state_dict()."
                    )


def _holdings(group: Mapping[str, Any]) -> Holdings | None:
    """Returns what the worker holds of the module that a group's first parameter belongs to."""
    engine = engine_of(group["params"][0]) if group["params"] else None
    return None if engine is None else engine.holdings
