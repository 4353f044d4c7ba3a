"""Modules that stand for those of the original: its tree, types, modes and attributes, with a worker's tensors."""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn

from sdp_compile.capture.modes import WithoutOperators
from sdp_compile.errors import SDPError
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import MISSING
from sdp_compile.runtime.asking import ask, not_callable
from sdp_compile.runtime.python_state import PythonState

Self = TypeVar("Self", bound="WithAttributes")

_CONTAINER = ("__len__", "__iter__", "__reversed__", "__getitem__", "__contains__")
"""Methods that look into a container, which Python takes from its class alone."""


class WithAttributes(nn.Module):
    """A module that stands for one of the original's; what the original has as plain attributes is set there too.

    Objects that the original keeps, such as its configuration, are there to be read and changed.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            state, path = vars(self).get("_sdp_place", (None, ""))
            if state is None:
                raise
            value = state.lend(path, name)
            if value is MISSING:
                owner = submodule(state.skeleton, path)
                value = ask(self, standing_for(self, type(owner)), owner, name)
            if value is MISSING:
                raise
            return value

    def __setattr__(self, name: str, value: Any) -> None:
        place = vars(self).get("_sdp_place")
        if place is not None and name == "training":
            vars(self)[name] = value
            place[0].set_mode(place[1], value)
            return
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

    def train(self: Self, mode: bool = True) -> Self:
        """Sets the mode of this part and of those in it, as the original's own ``train()`` does."""
        return self._switch("train", mode)

    def eval(self: Self) -> Self:
        """Sets evaluation mode, as the original's own ``eval()`` does."""
        return self._switch("eval")

    def _switch(self: Self, name: str, *mode: bool) -> Self:
        place = vars(self).get("_sdp_place")
        if place is None:
            getattr(nn.Module, name)(self, *mode)
            return self
        state, path = place
        owner = submodule(state.skeleton, path)
        kind = type(owner)
        own = vars(owner).get(name, MISSING)
        with state.switching():
            if own is MISSING and getattr(kind, name) is getattr(nn.Module, name):
                getattr(nn.Module, name)(self, *mode)
                return self
            if own is MISSING or (isinstance(own, MethodType) and own.__self__ is owner):
                own = MethodType(getattr(kind, name) if own is MISSING else own.__func__, standing_for(self, kind))
            with WithoutOperators(kind) as watched:
                own(*mode)
        if watched.found:
            raise SDPError(
                f"{name}() of {kind.__name__} computes with tensors ({watched.found}), and the worker holds only "
                f"slices of them. Do this outside of {name}()."
            )
        return self


class Part(WithAttributes):
    """A module of the original, as far as a worker holds it: its tensors and its plain attributes."""

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refuses the call: only the whole model is compiled."""
        raise not_callable(vars(self).get("_sdp_place", (None, ""))[1])

    def extra_repr(self) -> str:
        """Returns what the original prints of itself."""
        place: tuple[PythonState, str] | None = vars(self).get("_sdp_place")
        return "" if place is None else submodule(place[0].skeleton, place[1]).extra_repr()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _restored, (getattr(type(self), "_sdp_kind", None), self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))


@functools.cache
def part_of(kind: type[nn.Module]) -> type[Part]:
    """Returns the class of parts that stand for modules of a class: to ``isinstance`` they are of that class.

    What looks into a container, such as ``len()`` and indexing, is the original's.
    """
    held = {name: getattr(kind, name) for name in _CONTAINER if hasattr(kind, name)}
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": Part.__doc__}
    return type(kind.__name__, (Part,), {**held, **names, "__class__": property(lambda _: kind), "_sdp_kind": kind})


def standing_for(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Returns ``module`` as a part of a class, so that methods of the class can run on it."""
    if isinstance(module, Part):
        return module
    part = part_of(kind).__new__(part_of(kind))
    object.__setattr__(part, "__dict__", vars(module))
    return part


def _restored(kind: type[nn.Module] | None, state: dict[str, Any]) -> Part:
    part = Part() if kind is None else part_of(kind)()
    vars(part).update(state)
    return part
