"""What modules keep in ``state_dict()`` besides tensors: `torch.nn.Module.get_extra_state`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from sdp_compile.checkpoint.model import CompiledModel, Model
from sdp_compile.checkpoint.plain import decode
from sdp_compile.checkpoint.taking import taking
from sdp_compile.errors import SDPError
from sdp_compile.runtime.subnetwork import set_extra_state, skeleton_of

KEY = "modules"
"""What they are called in a checkpoint."""

_SUFFIX = "_extra_state"


def extra_states(model: Model) -> dict[str, Any]:
    """Returns the extra state of each module that has one, by its key in the original's ``state_dict()``."""
    return {key: module.get_extra_state() for key, module in _modules(model).items()}


def check_extra_states(model: Model, saved: Mapping[str, Any]) -> None:
    """Raises `SDPError` if other modules have an extra state than those that were saved."""
    here = set(_modules(model))
    for key in sorted(here ^ set(saved)):
        what = "lacks" if key in here else "has besides"
        raise SDPError(f"The checkpoint is that of another model: it {what} {key!r}. Load one of the same model.")


def states_in(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the extra states in what a checkpoint holds, by key.

    Raises:
        SDPError: If they are damaged.
    """
    found = decode(content.get(KEY, {"dict": []}))
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise SDPError("The checkpoint's extra states of modules are damaged. Load another checkpoint.")
    return found


def load_extra_states(model: Model, saved: Mapping[str, Any]) -> None:
    """Gives modules their extra states back.

    Raises:
        SDPError: If a module does not take its own.
    """
    for key, module in _modules(model).items():
        with taking(module):
            if isinstance(model, CompiledModel):
                set_extra_state(model.module, key.removesuffix(_SUFFIX).rstrip("."), saved[key])
            else:
                module.set_extra_state(saved[key])


def _modules(model: Model) -> dict[str, nn.Module]:
    """Returns the modules with an extra state; those of a compiled model are the original's, without weights."""
    root = skeleton_of(model.module) if isinstance(model, CompiledModel) else model.module
    return {
        f"{path}.{_SUFFIX}".lstrip("."): module
        for path, module in root.named_modules()
        if type(module).get_extra_state is not nn.Module.get_extra_state
    }
