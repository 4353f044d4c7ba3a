"""What forward reads besides tensors: a graph holds the values that they had at capture."""

from __future__ import annotations

import itertools
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CellType, ModuleType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile.ir.functions import has_marks, held_by
from sdp_compile.ir.parts import submodule
from sdp_compile.ir.plain import MISSING, bare, frozen, with_free

ReadKind = Literal["attribute", "switch", "buffer", "global", "tensors", "environment", "function", "answer"]

SWITCHES = frozenset({"training", "_forward_hooks", "_forward_pre_hooks"})
"""What `torch.nn.Module` itself keeps and a graph depends on."""


@dataclass(frozen=True)
class Read:
    """One Python value that forward read.

    Attributes:
        kind: An attribute of a module, a switch that `torch.nn.Module` itself keeps (its mode or its forward hooks),
            the value of a buffer with one element, a global variable, one with tensors, an environment variable, a
            function that is found by name, or the answer of a function that tells of the process.
        owner: The path of the module, what `owner_of` calls the Python module of the global variable, or ``""``.
        name: The name in it; of a buffer the full name.
        value: The frozen value.
        free: The paths to the floats in it that may change, as in `sdp_compile.ir.numbers.Place`.
    """

    kind: ReadKind
    owner: str
    name: str
    value: Any
    free: tuple[tuple[str | int, ...], ...] = ()

    def now(self, model: nn.Module) -> Any:
        """Returns the value that forward would read now, `MISSING` if there is none.

        Args:
            model: The model, or its skeleton; for a buffer, a module that holds the buffer's value.
        """
        if self.kind == "environment":
            return os.environ.get(self.name)
        if self.kind == "global":
            return scope_of(self.owner).get(self.name, MISSING)
        if self.kind == "tensors":
            return with_versions(scope_of(self.owner).get(self.name, MISSING))
        if self.kind == "function":
            return bare(self._function())
        if self.kind == "answer":
            return answer_of(self.owner, self.name)
        if self.kind == "buffer":
            return model.get_buffer(self.name).item()
        if self.kind == "switch":
            return switch(submodule(model, self.owner), self.name)
        return getattr(submodule(model, self.owner), self.name, MISSING)

    def place(self) -> tuple[Any, str]:
        """Returns what holds a function now, a dictionary or a class, and its name there."""
        scope = scope_of(self.owner)
        return (scope.holder(), self.name) if isinstance(scope, AttributesOf) else (scope, self.name)

    def getter(self) -> tuple[Callable[[str, Any], Any], str]:
        """Returns, for a function or a global variable, what returns its value or a default, and the name it takes."""
        if self.kind != "function":
            return scope_of(self.owner).get, self.name
        holder, name = self.place()
        return (partial(getattr, holder) if isinstance(holder, type) else holder.get), name

    def has_marks(self, model: nn.Module) -> bool:
        """Whether `sdp_compile.ir.functions.Marks` tell of every change of it."""
        if self.kind == "function":
            return True
        return self.kind == "global" and not self.free and has_marks(self.now(model))

    def _function(self) -> Any:
        holder, name = self.place()
        return held_by(holder, name) if isinstance(holder, type) else holder.get(name, MISSING)

    def __str__(self) -> str:
        if self.kind == "answer":
            return f"what {self.owner}.{self.name}() returns"
        if self.kind == "function":
            module, _, path = self.owner.partition(":")
            return f"function {f'{path}.' if path else ''}{self.name}() of {module.partition('#')[0]}"
        if self.kind == "environment":
            return f"environment variable {self.name}"
        if self.kind == "buffer":
            return f"the value of buffer {self.name!r}"
        if self.kind == "switch":
            what = "mode" if self.name == "training" else "forward hooks"
            return f"the {what} of {f'module {self.owner!r}' if self.owner else 'the model'}"
        where = f" of module {self.owner!r}" if self.kind == "attribute" and self.owner else ""
        if self.kind in ("global", "tensors"):
            module, _, path = self.owner.partition(":")
            where = f" of {module.partition('#')[0]}"
            if path:
                return f"attribute {self.name!r} of {path!r}{where}"
        return f"{'attribute' if self.kind == 'attribute' else 'global variable'} {self.name!r}{where}"


def answer_of(module: str, name: str) -> Any:
    """Returns what a function without arguments returns now, `MISSING` if there is none."""
    function = getattr(sys.modules.get(module), name, None)
    try:
        return MISSING if function is None else function()
    except Exception:
        return MISSING


def switch(module: nn.Module, name: str) -> bool | tuple[int, ...]:
    """Returns the value of one of `SWITCHES`: the mode, or the numbers of the hooks."""
    value = vars(module)[name]
    return value if isinstance(value, bool) else tuple(value)


def changed_read(reads: Iterable[Read], model: nn.Module) -> Read | None:
    """Returns the first read that would give another value now, or None; see `changed_reads`."""
    return next(changed_reads(reads, model), None)


def changed_reads(reads: Iterable[Read], model: nn.Module) -> Iterator[Read]:
    """Yields the reads that would give another value now.

    Args:
        reads: What forward read.
        model: See `Read.now`.
    """
    known: dict[int, Any] = {}  # many modules read one configuration
    for read in reads:
        value = read.now(model)
        if id(value) not in known:
            known[id(value)] = frozen(value), value  # kept, so that no other value gets its identity
        now = known[id(value)][0]
        for path in read.free:
            now = with_free(now, path)
        if now != read.value:
            yield read


_tokens = itertools.count(1)


def with_versions(value: Any, mark: bool = False) -> tuple[Any, ...]:
    """Returns a value with what tells whether the tensors in it are the same, and were not written to, at another time.

    Args:
        value: A tensor, a module, or a container or object with some.
        mark: Whether to mark tensors that were never asked for before; others count as changed.
    """
    tensors = tensors_of(value)
    if mark:
        for tensor in tensors:
            if not hasattr(tensor, _TOKEN):
                setattr(tensor, _TOKEN, next(_tokens))
    versions = [(getattr(one, _TOKEN, 0), 0 if one.is_inference() else one._version, *_content(one)) for one in tensors]
    return value, tuple(versions)


def _content(tensor: torch.Tensor) -> tuple[int, str] | tuple[()]:
    """Returns what writes through ``.data`` and NumPy change, which make no new version: the memory, and few values."""
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        return ()
    is_small = tensor.device.type == "cpu" and tensor.numel() <= _FEW
    return tensor.data_ptr(), repr(tensor.tolist()) if is_small else ""


_FEW = 8  # values of a tensor that are compared at each call


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Returns the tensors in a container, in a module, or in the attributes of an object."""
    leaves = pytree.tree_leaves(value)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    for leaf in leaves:
        if isinstance(leaf, nn.Module):
            tensors += [*leaf.parameters(), *leaf.buffers()]
        elif not isinstance(leaf, (type, ModuleType)):
            held = pytree.tree_leaves(list(getattr(leaf, "__dict__", {}).values()))
            tensors += [one for one in held if isinstance(one, torch.Tensor)]
    return tensors


_TOKEN = "_sdp_token"  # an identity could be that of an earlier tensor
_other_scopes: dict[str, Any] = {}


def owner_of(module: str, scope: Mapping[str, Any]) -> str:
    """Returns a name by which a `Read` finds the variables of a scope again.

    Args:
        module: The name that the scope has for itself.
        scope: The global variables of a function. They are not those of the module of that name if the function was
            made by ``exec``, or if a package has put another object in its place.
    """
    if _variables(sys.modules.get(module)) is scope:
        return module
    for name, known in _other_scopes.items():
        if known is scope:
            return name
    name = f"{module}#{len(_other_scopes)}"
    _other_scopes[name] = scope
    return name


def owner_of_class(kind: type) -> str:
    """Returns a name by which a `Read` finds the attributes of a class again."""
    owner = f"{kind.__module__}:{kind.__qualname__}"
    if "<" not in owner and scope_of(owner).holder() is kind:
        return owner
    for name, known in _other_scopes.items():
        if isinstance(known, AttributesOf) and known.holder() is kind:
            return name
    name = f"class {kind.__name__}#{len(_other_scopes)}"
    _other_scopes[name] = AttributesOf({"kind": kind}, ["kind"])
    return name


def owner_of_module(module: nn.Module) -> str:
    """Returns a name by which a `Read` finds the attributes of a module that is not the model's again."""
    for name, known in _other_scopes.items():
        if isinstance(known, OfModule) and known.holder() is module:
            return name
    name = f"module {type(module).__name__}#{len(_other_scopes)}"
    _other_scopes[name] = OfModule(module)
    return name


def scope_of(owner: str) -> Any:
    """Returns the variables that `owner_of` gave the name ``owner``, by name.

    Args:
        owner: The name; after a colon a variable of the scope and attributes of it, to get the last one's attributes.
    """
    owner, _, path = owner.partition(":")
    scope = _other_scopes[owner] if owner in _other_scopes else _variables(sys.modules.get(owner))
    return AttributesOf(scope, path.split(".")) if path else scope


class AttributesOf:
    """The attributes of what a variable leads to now, by name.

    Args:
        scope: The scope of the variable.
        path: The name of the variable, and of attributes.
    """

    def __init__(self, scope: Mapping[str, Any], path: Sequence[str]) -> None:
        self._scope, self._path = scope, path

    def holder(self) -> Any:
        """Returns what the path leads to now."""
        value = self._scope.get(self._path[0], MISSING)
        for name in self._path[1:]:
            value = getattr(value, name, MISSING)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """Returns an attribute, or ``default`` if there is none."""
        return getattr(self.holder(), name, default)

    def __getitem__(self, name: str) -> Any:
        return getattr(self.holder(), name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self.holder(), name, value)


class OfModule(AttributesOf):
    """The attributes of a module, by name, for as long as it exists.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__({}, [])
        self._module = weakref.ref(module)

    def holder(self) -> Any:
        """Returns the module; `MISSING` if it is gone."""
        module = self._module()
        return MISSING if module is None else module


class Cells(dict[str, Any]):
    """Variables of a function that inner functions read, by name, as they are now.

    Args:
        cells: Where they are kept.
    """

    def __init__(self, cells: Mapping[str, CellType]) -> None:
        super().__init__()
        self._cells = cells

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value of a variable, or ``default`` if it has none."""
        try:
            return self._cells[name].cell_contents
        except (KeyError, ValueError):
            return default

    def __getitem__(self, name: str) -> Any:
        return self._cells[name].cell_contents

    def __setitem__(self, name: str, value: Any) -> None:
        self._cells[name].cell_contents = value


def _variables(module: ModuleType | None) -> Mapping[str, Any]:
    return getattr(module, "__dict__", {})


class Defaults:
    """What torch itself takes where the model's code does not say.

    Attributes:
        dtype: What counts as the default dtype where a context has another one for all that runs in it.
    """

    def __init__(self) -> None:
        self.dtype: torch.dtype | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """Returns the value of a setting by name."""
        return (self.dtype or torch.get_default_dtype()) if name == "default dtype" else default


DEFAULTS = "torch (settings)"
"""The owner of the setting ``"default dtype"``."""

torch_defaults = Defaults()
"""The settings of this process."""

_other_scopes[DEFAULTS] = torch_defaults
