"""Watches which attributes of modules forward reads and writes."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Mapping
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType, TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile.capture.diagnosis import calling_line, is_user_file
from sdp_compile.capture.originals import ORIGINALS, StandIns
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import MISSING, frozen, is_number
from sdp_compile.ir.reads import SWITCHES, Read, owner_of_module, switch

INTERNAL = frozenset({*vars(nn.Module()), *vars(nn.Module), "T_destination", ORIGINALS})
"""The attributes that `torch.nn.Module` itself keeps, and what capture notes of a copy."""

FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, partial, type)
"""What may be called and is compared by where it is written."""

# This file of torch takes parts of a module as attributes, which those of its class may hide.
_ACCESSOR = os.path.join(os.path.dirname(nn.__file__), "utils", "_named_member_accessor")

Place = tuple[str, str]
"""The path of a module and the name of one of its attributes."""


class Alias:
    """Stands for an attribute that is a parameter or buffer without its gradient, in the same memory.

    Attributes:
        path: The path of the module that has the tensor.
        name: The tensor's name in it.
    """

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name

    def tensor(self, model: nn.Module) -> torch.Tensor:
        """Returns the tensor, without its gradient, in a copy of the model."""
        found: torch.Tensor = getattr(submodule(model, self.path), self.name)
        return found.detach()


class Attributes:
    """Context manager around a run of ``model`` that notes reads and writes of its modules' own attributes.

    Parameters, buffers and submodules are no such attributes, nor are those that `torch.nn.Module` itself keeps, apart
    from modes and forward hooks.

    Attributes:
        reads: The attributes without tensors that were read.
        writes: Where the user's code wrote each attribute, for those that it wrote.
        carried: The attributes with tensors that were read before they were written.
        settings: What was read of modules that are not the model's.

    Args:
        model: The model.
        outside: Modules that are not the model's, by identity.
    """

    def __init__(self, model: nn.Module, outside: Mapping[int, nn.Module] = MappingProxyType({})) -> None:
        self.settings: dict[tuple[int, str], Read] = {}
        self._outside = outside
        self.reads: dict[Place, None] = {}
        self._switches: dict[Place, Any] = {}
        self.writes: dict[Place, str] = {}
        self.carried: dict[Place, str] = {}
        self._model = model
        self._paths = {id(module): path for path, module in model.named_modules()}
        self._modules = dict(model.named_modules())
        self._before = {path: _registered(module) for path, module in self._modules.items()}
        self._values = dict(self._all())
        self._trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._by_torch: set[Place] = set()
        self._frozen = _frozen_all(self._values)
        self._contents = {
            place: {key: id(item) for key, item in value.items()}
            for place, value in self._values.items()
            if isinstance(value, dict)
        }

    def __enter__(self) -> Attributes:
        watched: Any = nn.Module
        self._original_set = watched.__setattr__
        set_attribute, note_read, note_write = self._original_set, self._read, self._written
        outside, note_setting = self._outside, self._setting
        paths, model, switches, stand_ins = self._paths, self._model, self._switches, StandIns(self._model)
        hidden = {
            (id(module), name)
            for module in self._modules.values()
            for name in _registered(module)
            if hasattr(type(module), name) or name in vars(module)
        }

        def get(module: nn.Module, name: str) -> Any:
            if module in stand_ins:
                module = stand_ins[module]
            if hidden and (id(module), name) in hidden and _is_accessor(sys._getframe(1).f_code):
                return _registry(module, name)[name]
            try:
                value = object.__getattribute__(module, name)
            except AttributeError:
                if id(module) in paths and not _holds(module, name):
                    note_read(module, name, MISSING)
                raise
            if id(module) in outside:
                note_setting(module, name, value)
            elif name in SWITCHES:
                if id(module) in paths:
                    switches.setdefault((paths[id(module)], name), switch(module, name))
            elif name not in INTERNAL and id(module) in paths:
                if isinstance(value, Alias):
                    return value.tensor(model)
                note_read(module, name, value)
            return value

        def write(module: nn.Module, name: str, value: Any) -> None:
            if module in stand_ins:
                module = stand_ins[module]
            if id(module) in paths:
                if name in SWITCHES:  # what forward itself sets is no setting
                    switches.setdefault((paths[id(module)], name), None)
                note_write(module, name)
            set_attribute(module, name, value)

        watched.__getattribute__, watched.__setattr__ = get, write
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        watched: Any = nn.Module
        watched.__setattr__ = self._original_set
        del watched.__getattribute__

    def read(self, original: nn.Module) -> list[Read]:
        """Returns what was read, with the values that it has in the original, of which a prepared copy ran."""
        values = {place: Read("attribute", *place, None).now(original) for place in self.reads}
        values = {place: value for place, value in values.items() if not self._is_of_tensors(place, value)}
        found = [Read("attribute", *place, value) for place, value in _frozen_all(values).items()]
        for place, value in self._switches.items():
            if value is not None:
                # The mode is that of the copy that ran, but to its hooks torch adds some while it captures.
                kept = value if place[1] == "training" else Read("switch", *place, None).now(original)
                found.append(Read("switch", *place, frozen(kept)))
        return found

    def _is_of_tensors(self, place: Place, value: Any) -> bool:
        """Whether a property tells the dtype or device of its module's tensors, which each call compares anyway.

        What else its code reads is noted by itself. Hugging Face's models have such properties.
        """
        held = getattr(type(self._modules[place[0]]), place[1], None)
        return isinstance(held, property) and isinstance(value, (torch.dtype, torch.device))

    def created(self) -> list[Place]:
        """Returns the parameters, buffers and submodules that the run added."""
        found = []
        for path, module in self._modules.items():
            for kept in (module._parameters, module._buffers, module._modules):
                found += [(path, name) for name in kept if name not in self._before[path]]
        return found

    def frozen_anew(self) -> list[str]:
        """Returns the parameters whose ``requires_grad`` the run changed."""
        now = {name: parameter.requires_grad for name, parameter in self._model.named_parameters()}
        return [name for name, trained in self._trained.items() if now.get(name, trained) != trained]

    def outputs(self) -> list[Place]:
        """Returns the attributes that the user's code assigned a tensor, a container of tensors, or plain values.

        Plain values that were read before, such as those of a counter, are no outputs.
        """
        return [
            place
            for place, value in self._all()
            if place in self.writes
            and (
                value is not self._values.get(place)
                if has_tensor(value)
                else place not in self.reads and place not in self.carried and _is_plain(value)
            )
        ]

    def was_number(self, place: Place) -> bool:
        """Whether an attribute was a number, a text or None before the run, and no container or object."""
        return isinstance(self._values.get(place), (bool, int, float, str, type(None)))

    def is_new(self, place: Place) -> bool:
        """Whether there was no such attribute before the run, in the module or as a plain value in its class."""
        path, name = place
        default = inspect.getattr_static(type(self._modules[path]), name, MISSING)
        return place not in self._values and (default is MISSING or hasattr(type(default), "__get__"))

    def filled(self) -> dict[Place, dict[Any, Any]]:
        """Returns the dictionaries to which the run added tensors and did nothing else, with what they now hold.

        A second run that leaves them as they are shows that they are caches: what is in them would be computed again.
        """
        found = {}
        for place, value in self._all():
            before = self._contents.get(place)
            if before is None or not isinstance(value, dict) or value is not self._values[place]:
                continue
            kept = all(key in value and id(value[key]) == identity for key, identity in before.items())
            if kept and all(has_tensor(item) for key, item in value.items() if key not in before):
                found[place] = {key: (id(item), _versions(item)) for key, item in value.items()}
        return found

    def changed(self) -> list[Place]:
        """Returns the attributes without tensors that the run changed or removed."""
        now = dict(self._all())
        outputs = {*self.outputs(), *self._by_torch}
        after = _frozen_all(now)
        return [
            place
            for place in dict.fromkeys((*self._values, *now))
            if place not in outputs and after.get(place, MISSING) != self._frozen.get(place, MISSING)
        ]

    def _all(self) -> list[tuple[Place, Any]]:
        return [
            ((path, name), value)
            for path, module in self._modules.items()
            for name, value in vars(module).items()
            if name not in INTERNAL
        ]

    def _read(self, module: nn.Module, name: str, value: Any) -> None:
        place = (self._paths[id(module)], name)
        if place in self.reads or place in self.writes or isinstance(value, (torch.Tensor, nn.Module)):
            return
        own = name in vars(module)
        if own and has_tensor(value):
            self.carried.setdefault(place, calling_line(type(self._model)))
            self.reads[place] = None  # another container there is another value
        elif value is MISSING or is_number(value) or (own and (not callable(value) or isinstance(value, FUNCTIONS))):
            self.reads[place] = None

    def _setting(self, module: nn.Module, name: str, value: Any) -> None:
        plain = name not in INTERNAL and (is_number(value) or isinstance(value, FUNCTIONS))
        if (id(module), name) not in self.settings and (name in SWITCHES or plain):
            self.settings[id(module), name] = Read("global", owner_of_module(module), name, frozen(value))

    def _written(self, module: nn.Module, name: str) -> None:
        place = (self._paths[id(module)], name)
        if name in INTERNAL or place in self.writes:
            return
        if is_user_file(sys._getframe(2).f_code.co_filename):
            self.writes[place] = calling_line(type(self._model))
        else:
            self._by_torch.add(place)  # such as what old weight norm computes


def _versions(value: Any) -> tuple[int, ...]:
    """Returns how often each tensor in a value has been written to."""
    found = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    return tuple(-1 if tensor.is_inference() else tensor._version for tensor in found)


def has_tensor(value: Any) -> bool:
    """Whether a value is a tensor or a container with one."""
    return any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(value))


def _is_plain(value: Any) -> bool:
    return all(
        leaf is None or type(leaf) in (bool, int, float, str, torch.SymInt, torch.SymFloat, torch.SymBool)
        for leaf in pytree.tree_leaves(value)
    )


def _registered(module: nn.Module) -> set[str]:
    return {*module._parameters, *module._buffers, *module._modules}


def _frozen_all(values: Mapping[Place, Any]) -> dict[Place, Any]:
    """Returns the frozen values; what several modules share, such as a configuration, is frozen once."""
    known: dict[int, Any] = {}
    found = {}
    for place, value in values.items():
        if id(value) not in known:
            known[id(value)] = frozen(value)
        found[place] = known[id(value)]
    return found


def _is_accessor(code: CodeType) -> bool:
    return code.co_name == "get_submodule" and code.co_filename.startswith(_ACCESSOR)


def _holds(module: nn.Module, name: str) -> bool:
    return name in _registry(module, name)


def _registry(module: nn.Module, name: str) -> Mapping[str, Any]:
    """Returns the registry of ``nn.Module`` that holds a name; an empty one if none does."""
    kept = vars(module)
    return next((kept[part] for part in ("_parameters", "_buffers", "_modules") if name in kept.get(part, ())), {})
