"""Modules that stand for those of the original: its tree, types, modes and attributes, with a worker's tensors."""

from __future__ import annotations

from types import MethodType
from typing import Any, TypeVar

from torch import nn

from sdp_compile.capture.modes import WithoutOperators
from sdp_compile.errors import SDPError
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import MISSING
from sdp_compile.runtime.asking import PartCalledError, ask
from sdp_compile.runtime.python_state import Place
from sdp_compile.runtime.refusals import fixed_tree, refuse_change, refuse_removal
from sdp_compile.runtime.wrapping import Unwrappable

Self = TypeVar("Self", bound="WithAttributes")

_classes: dict[type[nn.Module], type[Part]] = {}

_CODE = ("__class__", "forward")
_CONTAINER = ("__len__", "__iter__", "__reversed__", "__getitem__", "__contains__")
"""Methods that look into a container, which Python takes from its class alone."""

_CHANGING = ("__setitem__", "__delitem__", "__iadd__")


class WithAttributes(Unwrappable):
    """A module that stands for one of the original's; what the original has as plain attributes is set there too.

    Objects that the original keeps, such as its configuration, are there to be read and changed.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            state, path, _ = vars(self).get("_sdp_place", (None, "", ()))
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
        if place is None:
            super().__setattr__(name, value)
        elif name == "training":
            vars(self)[name] = value
            place[0].set_mode(place[1], value)
        elif name in place[2] or (hasattr(type(self), name) and name not in _CODE):
            super().__setattr__(name, value)
        else:
            refuse_change(self, place[0], place[1], name, value)
            if place[0].set(place[1], name, value):
                vars(self)[name] = value
            else:
                super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        place = vars(self).get("_sdp_place")
        if place is not None and name not in place[2]:
            refuse_removal(place[0], place[1], name)
            place[0].remove(place[1], name)
        super().__delattr__(name)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Refuses to change the original's tree, which the graphs hold; the model itself can get more modules."""
        place: Place | None = vars(self).get("_sdp_place")
        if place is not None and self._modules.get(name) is module:
            return
        if place is not None and (place[1] or name in submodule(place[0].skeleton, "")._modules):
            raise fixed_tree(place[1])
        super().add_module(name, module)

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
        state, path, _ = place
        owner = submodule(state.skeleton, path)
        kind = type(owner)
        held: Any = vars(owner).get(name)
        with state.switching():
            if held is None and getattr(kind, name) is getattr(nn.Module, name):
                getattr(nn.Module, name)(self, *mode)
                return self
            if held is None:
                held = MethodType(getattr(kind, name), standing_for(self, kind))
            elif isinstance(held, MethodType) and held.__self__ is owner:
                held = MethodType(held.__func__, standing_for(self, kind))
            with WithoutOperators(kind) as watched:
                held(*mode)
        if watched.found:
            raise SDPError(
                f"{name}() of {kind.__name__} computes with tensors ({watched.found}), and the worker holds only "
                f"slices of them. Do this outside of {name}()."
            )
        return self


class Part(WithAttributes):
    """A module of the original, as far as a worker holds it: its tensors and its plain attributes.

    Forward hooks are part of the next call's graph.
    """

    def get_extra_state(self) -> Any:
        """Returns what the original keeps in ``state_dict()`` besides tensors."""
        state, path, _ = vars(self)["_sdp_place"]
        return submodule(state.skeleton, path).get_extra_state()

    def set_extra_state(self, extra: Any) -> None:
        """Sets what the original keeps in ``state_dict()`` besides tensors; the next call counts with it."""
        state, path, _ = vars(self)["_sdp_place"]
        state.set_extra(path, extra)

    def register_forward_hook(self, hook: Any, **options: Any) -> Any:
        """Registers a hook as `torch.nn.Module` does; it sees full tensors without values when the model is captured.

        Raises:
            SDPError: At the next call, if the hook does what a graph would lose. The error names the line.
        """
        return self._hooked("register_forward_hook", hook, options)

    def register_forward_pre_hook(self, hook: Any, **options: Any) -> Any:
        """Registers a hook before forward; see `register_forward_hook`."""
        return self._hooked("register_forward_pre_hook", hook, options)

    def _hooked(self, name: str, hook: Any, options: dict[str, Any]) -> Any:
        place: Place | None = vars(self).get("_sdp_place")
        if place is None or not place[1]:
            return getattr(nn.Module, name)(self, hook, **options)
        return place[0].hook(place[1], name, hook, options)

    def register_full_backward_hook(self, *_args: Any, **_options: Any) -> Any:
        """Refuses the hook, which would never run."""
        raise self._no_backward_hook()

    def register_full_backward_pre_hook(self, *_args: Any, **_options: Any) -> Any:
        """Refuses the hook, which would never run."""
        raise self._no_backward_hook()

    def register_backward_hook(self, *_args: Any, **_options: Any) -> Any:
        """Refuses the hook, which would never run."""
        raise self._no_backward_hook()

    def _no_backward_hook(self) -> SDPError:
        return SDPError(
            f"Part {_path(self)!r} of a compiled model cannot have a backward hook, because its graph runs as a whole. "
            "Register a hook on a parameter (parameter.register_hook), or in a forward hook compute what changes the "
            "gradient from its output."
        )

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refuses the call: only the whole model is compiled."""
        raise PartCalledError(_path(self))

    def extra_repr(self) -> str:
        """Returns what the original prints of itself."""
        place: Place | None = vars(self).get("_sdp_place")
        if place is None:
            return ""
        owner = submodule(place[0].skeleton, place[1])
        if isinstance(owner, (nn.ParameterList, nn.ParameterDict)):
            return type(owner).extra_repr(self)  # type: ignore[arg-type]  # a part is one of them, as far as this goes
        return owner.extra_repr()

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _empty, (getattr(type(self), "_sdp_kind", None),), self.__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))


def part_of(kind: type[nn.Module]) -> type[Part]:
    """Returns the class of parts that stand for modules of a class: to ``isinstance`` they are of that class.

    What looks into a container, such as ``len()`` and indexing, is the original's.
    """
    if kind not in _classes:
        held: dict[str, Any] = {name: getattr(kind, name) for name in _CONTAINER if hasattr(kind, name)}
        held |= {name: _refusing for name in _CHANGING if hasattr(kind, name)}
        held |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": Part.__doc__}
        held |= {"__class__": property(lambda _: kind), "_sdp_kind": kind}
        _classes[kind] = type(kind.__name__, (Part,), held)
    return _classes[kind]


def open_container(module: type[nn.Module], kind: type[nn.Module]) -> None:
    """Gives the class of one module the methods with which one looks into a container, if ``kind`` has them."""
    for name in _CONTAINER:
        if hasattr(kind, name):
            setattr(module, name, _looking(getattr(kind, name), kind))
    for name in _CHANGING:
        if hasattr(kind, name):
            setattr(module, name, _refusing)


def _looking(function: Any, kind: type[nn.Module]) -> Any:
    def look(module: nn.Module, *args: Any) -> Any:
        return function(standing_for(module, kind), *args)

    return look


def _refusing(part: nn.Module, *_args: Any) -> Any:
    raise fixed_tree(_path(part))


def standing_for(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """Returns ``module`` as a part of a class, so that methods of the class can run on it."""
    if isinstance(module, Part):
        return module
    part = part_of(kind).__new__(part_of(kind))
    object.__setattr__(part, "__dict__", vars(module))
    return part


def _path(part: nn.Module) -> str:
    place: Place | None = vars(part).get("_sdp_place")
    return "" if place is None else place[1]


def _empty(kind: type[nn.Module] | None) -> Part:
    """Returns a part without anything, for copies and pickles: hooks in its state may refer to it."""
    return object.__new__(Part if kind is None else part_of(kind))
