"""The plain attributes of the original model: settings that its code reads, changed through the subnetwork."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from sdp_compile.capture.attributes import INTERNAL, Alias, has_tensor
from sdp_compile.capture.clone import clone
from sdp_compile.capture.origins import tensors_in
from sdp_compile.ir.kept import Kept, KeptEntries
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import MISSING, is_number


class PythonState:
    """The attributes, modes and forward hooks of one compiled module, kept in a copy of the original without weights.

    The copy is shared with what the module was made from until something in it is set.

    Attributes:
        asked: The attributes that forward has asked for, also without finding them.
        kept: What calls have kept by key until now.
        skeleton: The original model without weights.
        version: Counts the attributes that were set.
        switches: The parts whose mode is not the model's, and the numbers of all hooks.
        is_lent: Whether an object in the copy was handed out, which may change then at any time.
    """

    def __init__(self, skeleton: nn.Module, kept: Iterable[Kept] = ()) -> None:
        self.kept = KeptEntries(kept)
        self.asked: set[tuple[str, str]] = set()
        self.skeleton = skeleton
        self.version = 0
        self.switches: tuple[tuple[str, ...], tuple[int, ...]] = ((), ())
        self.is_lent = False
        self._is_own = False
        self._switching = 0
        self._note_switches()

    def has(self, path: str, name: str) -> bool:
        """Whether the original module at ``path`` has a plain attribute called ``name``."""
        if name in INTERNAL or name.startswith("__"):
            return False
        owner = submodule(self.skeleton, path)
        if name in vars(owner):
            return not isinstance(vars(owner)[name], (torch.Tensor, Alias))
        return is_number(getattr(type(owner), name, self))

    def set(self, path: str, name: str, value: Any) -> bool:
        """Sets a plain attribute; the next call captures the model again if its code has read another value.

        Returns:
            Whether it is an attribute that the original has or could have.
        """
        has = self.has(path, name)
        if isinstance(value, (torch.Tensor, nn.Module)) or not (has or _is_plain(name, value)):
            return False
        self.own()
        owner = submodule(self.skeleton, path)
        vars(owner)[name] = value
        self.kept.forget((path, name))
        self.is_lent |= has and not is_number(value)
        self.version += (path, name) in self.asked
        return True

    def set_extra(self, path: str, extra: Any) -> None:
        """Gives a module its extra state, which may change anything in it."""
        self.own()
        submodule(self.skeleton, path).set_extra_state(extra)
        self.version += 1

    def remove(self, path: str, name: str) -> None:
        """Removes an attribute that was added, if it is there."""
        if name in vars(submodule(self.skeleton, path)):
            self.own()
            del vars(submodule(self.skeleton, path))[name]

    def lend(self, path: str, name: str) -> Any:
        """Returns an object, such as a configuration, that is an attribute of the original at ``path``.

        What is changed in it counts from the next call on. `MISSING` stands for what the original does not have, and
        for tensors, modules and functions.
        """
        value = vars(submodule(self.skeleton, path)).get(name, MISSING)
        hidden = name in INTERNAL or value is MISSING or isinstance(value, Alias) or callable(value)
        if hidden or any(True for _ in tensors_in(value)):
            return MISSING
        self.own()
        self.is_lent = True
        return vars(submodule(self.skeleton, path))[name]

    def set_mode(self, path: str, training: bool) -> None:
        """Sets the mode of one part."""
        if submodule(self.skeleton, path).training != training:
            self.own()
            vars(submodule(self.skeleton, path))["training"] = training
        if not self._switching:
            self._note_switches()

    @contextmanager
    def switching(self) -> Iterator[None]:
        """Context in which many switches are set, and `switches` follows at the end."""
        self._switching += 1
        try:
            yield
        finally:
            self._switching -= 1
            if not self._switching:
                self._note_switches()

    def _note_switches(self) -> None:
        parts = dict(self.skeleton.named_modules())
        modes = tuple(path for path, module in parts.items() if module.training != self.skeleton.training)
        hooks = tuple(number for m in parts.values() for number in (*m._forward_hooks, *m._forward_pre_hooks))
        self.switches = modes, hooks

    def hook(self, path: str, name: str, hook: Any, options: Mapping[str, Any]) -> RemovableHandle:
        """Registers a forward hook; the next call captures the model with it.

        Args:
            path: The path of the module.
            name: The method of `torch.nn.Module` that registers it.
            hook: The hook.
            options: The method's options.
        """
        self.own()
        handle = getattr(nn.Module, name)(submodule(self.skeleton, path), hook, **options)
        self._note_switches()
        return _Handle(self, path, handle)

    def unhook(self, path: str, number: int) -> None:
        """Removes a forward hook, if it is still there."""
        self.own()
        owner: Any = submodule(self.skeleton, path)
        for kept in (
            owner._forward_hooks,
            owner._forward_hooks_with_kwargs,
            owner._forward_hooks_always_called,
            owner._forward_pre_hooks,
            owner._forward_pre_hooks_with_kwargs,
        ):
            kept.pop(number, None)
        self._note_switches()

    def share(self) -> nn.Module:
        """Returns the skeleton for a copy of the module; what is set later is set in one of them only."""
        if self.is_lent:
            return clone(self.skeleton)
        self._is_own = False
        return self.skeleton

    def own(self) -> None:
        """Makes the skeleton this state's own before it is changed."""
        if not self._is_own:
            with _disable_current_modes():  # a mode in which a method runs may refuse to copy tensors
                self.skeleton = clone(self.skeleton)
            self._is_own = True

    def mirror(self, module: nn.Module, path: str) -> None:
        """Gives a module that stands for the original's at ``path`` its mode, and its numbers whose names are free."""
        vars(module)["_sdp_place"] = (self, path, frozenset(vars(module)) - {"training"})
        owner = submodule(self.skeleton, path)
        vars(module)["training"] = owner.training
        held: dict[str, Any] = {}
        for kind in reversed(type(owner).__mro__[: type(owner).__mro__.index(nn.Module)]):
            held.update((name, value) for name, value in vars(kind).items() if not name.startswith("__"))
        for name, value in {**held, **vars(owner)}.items():
            if name not in INTERNAL and is_number(value) and not _is_taken(module, name):
                vars(module)[name] = value


class _Handle(RemovableHandle):
    """Removes a hook, also after the skeleton has been copied."""

    def __init__(self, state: PythonState, path: str, handle: RemovableHandle) -> None:
        self.id, self.hooks_dict_ref, self.extra_dict_ref = handle.id, handle.hooks_dict_ref, handle.extra_dict_ref
        self._state, self._path = state, path

    def remove(self) -> None:
        self._state.unhook(self._path, self.id)


def _is_plain(name: str, value: Any) -> bool:
    """Whether a new attribute is a setting, which the original's code may look for, and nothing of torch's own."""
    if name in INTERNAL or name.startswith(("__", "_torch", "_dynamo", "_sdp")):
        return False
    plain = isinstance(value, (list, tuple, dict, set, FunctionType, partial))
    return is_number(value) or (plain and not has_tensor(value))


Place = tuple[PythonState, str, frozenset[str]]
"""Whose attributes a part has, its path, and the attributes that are its own."""


def _is_taken(module: nn.Module, name: str) -> bool:
    registered = name in module._parameters or name in module._buffers or name in module._modules
    return registered or name in vars(module) or hasattr(type(module), name)
