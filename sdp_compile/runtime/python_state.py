"""The plain attributes of the original model: settings that its code reads, changed through the subnetwork."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sdp_compile.capture.attributes import INTERNAL, Alias, has_tensor
from sdp_compile.capture.clone import clone
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import MISSING, is_number
from sdp_compile.runtime.wrapping import Unwrappable


class PythonState:
    """The attributes of one compiled module, kept in a copy of the original model without weights.

    The copy is shared with what the module was made from until an attribute is set.

    Attributes:
        skeleton: The original model without weights.
        version: Counts the attributes that were set.
        is_lent: Whether an object in the copy was handed out, which may change then at any time.
    """

    def __init__(self, skeleton: nn.Module) -> None:
        self.skeleton = skeleton
        self.version = 0
        self.is_lent = False
        self._is_own = False

    def has(self, path: str, name: str) -> bool:
        """Whether the original module at ``path`` has a plain attribute called ``name``."""
        if name in INTERNAL or name.startswith("__"):
            return False
        owner = submodule(self.skeleton, path)
        if name in vars(owner):
            return not isinstance(vars(owner)[name], (torch.Tensor, Alias))
        return is_number(getattr(type(owner), name, self))

    def set(self, path: str, name: str, value: Any) -> None:
        """Sets a plain attribute; the next call captures the model again if its code has read another value."""
        self._own()
        self.is_lent |= not is_number(value)
        setattr(submodule(self.skeleton, path), name, value)
        self.version += 1

    def lend(self, path: str, name: str) -> Any:
        """Returns an object, such as a configuration, that is an attribute of the original at ``path``.

        What is changed in it counts from the next call on. `MISSING` stands for what the original does not have, and
        for tensors, modules and functions.
        """
        value = vars(submodule(self.skeleton, path)).get(name, MISSING)
        hidden = name in INTERNAL or value is MISSING or isinstance(value, Alias) or callable(value)
        if hidden or has_tensor(value):
            return MISSING
        self._own()
        self.is_lent = True
        return vars(submodule(self.skeleton, path))[name]

    def share(self) -> nn.Module:
        """Returns the skeleton for a copy of the module; what is set later is set in one of them only."""
        if self.is_lent:
            return clone(self.skeleton)
        self._is_own = False
        return self.skeleton

    def _own(self) -> None:
        if not self._is_own:
            self.skeleton = clone(self.skeleton)
            self._is_own = True

    def mirror(self, module: nn.Module, path: str) -> None:
        """Gives a module that stands for the original's at ``path`` the numbers and strings whose names are free."""
        vars(module)["_sdp_place"] = (self, path)
        owner = submodule(self.skeleton, path)
        held: dict[str, Any] = {}
        for kind in reversed(type(owner).__mro__[: type(owner).__mro__.index(nn.Module)]):
            held.update((name, value) for name, value in vars(kind).items() if not name.startswith("__"))
        for name, value in {**held, **vars(owner)}.items():
            if name not in INTERNAL and is_number(value) and not _is_taken(module, name):
                vars(module)[name] = value


class WithAttributes(Unwrappable):
    """A module that stands for one of the original's; what the original has as plain attributes is set there too.

    Objects that the original keeps, such as its configuration, are there to be read and changed.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            state, path = vars(self).get("_sdp_place", (None, ""))
            value = MISSING if state is None else state.lend(path, name)
            if value is MISSING:
                raise
            return value

    def __setattr__(self, name: str, value: Any) -> None:
        place = vars(self).get("_sdp_place")
        if place is None or isinstance(value, (torch.Tensor, nn.Module)) or hasattr(type(self), name):
            super().__setattr__(name, value)
            return
        state, path = place
        known = name not in self._parameters and name not in self._buffers and name not in self._modules
        if known and state.has(path, name):
            state.set(path, name, value)
            vars(self)[name] = value
        else:
            super().__setattr__(name, value)


class Part(WithAttributes):
    """A module of the original, as far as a worker holds it: its tensors and its plain attributes."""


def _is_taken(module: nn.Module, name: str) -> bool:
    registered = name in module._parameters or name in module._buffers or name in module._modules
    return registered or name in vars(module) or hasattr(type(module), name)
