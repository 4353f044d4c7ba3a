"""Plain Python values, frozen so that a later value can be compared with them."""

from __future__ import annotations

import enum
import functools
import pickle
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from functools import partial
from itertools import islice
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

_NUMBERS = (bool, int, float, complex)
_ATOMS = (str, bytes, type(None), type(Ellipsis), torch.dtype, torch.device, torch.layout, torch.memory_format)
_CODE = (FunctionType, MethodType, partial)
_CONTAINERS = (list, tuple, dict, set)
_OPAQUE = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType, nn.Module, torch.Generator)
_FEW = 64  # numbers in containers that are compared by what they hold alone
_MOST = 5000  # parts of one value that are compared
_NAMES = {BuiltinFunctionType: "built-in function", MethodType: "method", ModuleType: "module"}
"""What stands for types that pickle does not find."""

MISSING = ("missing",)
"""Stands for an attribute that does not exist."""

FREE = ("free",)
"""Stands in a frozen value for a number that may be any."""


def is_number(value: Any) -> bool:
    """Whether a value is a Python number, a string or None, which a graph takes as it is at capture."""
    return type(value) in _NUMBERS or type(value) in _ATOMS


def frozen(value: Any, without: Callable[[Any, Any], bool] | None = None) -> Any:
    """Returns something that equals the frozen later value exactly if no plain data in it has changed.

    Containers and objects are compared by what they hold, and functions by where they are written. The values of
    tensors, and modules and classes, do not count, nor does more than the first thousands of parts.

    Args:
        value: The value.
        without: Tells of a key and what a dictionary has there, or of an element of a set and `MISSING`, whether it
            is left out, at any depth.
    """
    if value is MISSING:
        return value
    if is_number(value):
        return _number(value)
    return _Freezer(without).freeze(value)


def floats_since(before: Any, now: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the keys that lead to each float in a frozen value that was another number in an earlier one, or free."""
    if before == now or not isinstance(before, tuple) or not isinstance(now, tuple) or len(now) != 2:
        return
    if before == FREE or before[0] in (int, float):
        if now[0] is float:
            yield path
        return
    kind, parts = now
    same = before[0] is kind and isinstance(before[1], tuple) and isinstance(parts, tuple)
    if not same or len(parts) != len(before[1]):
        return
    for key, one, other in zip(_keys(kind, parts), _items(kind, before[1]), _items(kind, parts), strict=True):
        if key is not None:
            yield from floats_since(one, other, (*path, key))


def with_free(value: Any, path: tuple[Any, ...]) -> Any:
    """Returns a frozen value with `FREE` in place of what ``path`` leads to; the value itself if it leads nowhere."""
    if not path:
        return FREE
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[1], tuple):
        return value
    kind, parts = value
    keys = _keys(kind, parts)
    if path[0] not in keys:
        return value
    place = keys.index(path[0])
    inner = with_free(_items(kind, parts)[place], path[1:])
    if _is_row(kind):
        return kind, (*parts[: place + 1], inner, *parts[place + 2 :])
    return kind, (*parts[:place], (parts[place][0], inner), *parts[place + 1 :])


def _is_row(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, (list, tuple, deque))


def _keys(kind: Any, parts: tuple[Any, ...]) -> list[Any]:
    """Returns the key of each part of a frozen value, None for those that no path leads to."""
    if _is_row(kind):
        return [number if issubclass(kind, list) else None for number in range(len(parts) - 1)]
    return [part[0] if isinstance(part, tuple) and isinstance(part[0], str) else None for part in parts]


def _items(kind: Any, parts: Any) -> Any:
    return parts[1:] if _is_row(kind) else [part[1] if isinstance(part, tuple) else part for part in parts]


def _number(value: Any) -> Any:
    kind = type(value)
    return (kind, value if value == value else "nan") if kind in _NUMBERS else value


def _own(kind: type) -> set[str]:
    """Returns the names that a class and its bases other than `object` define."""
    return {name for base in kind.__mro__ if base is not object for name in vars(base)}


def _written(code: CodeType) -> Any:
    """Returns where code is written, and what is written there."""
    if id(code) not in _CODES:
        constants = repr([value for value in code.co_consts if is_number(value)])
        found = code.co_filename, code.co_firstlineno, zlib.crc32(code.co_code), zlib.crc32(constants.encode())
        _CODES[id(code)] = code, found
    return _CODES[id(code)][1]


_CODES: dict[int, tuple[CodeType, Any]] = {}
"""What `_written` returned, by the identity of the code, which is kept so that it stays that of the code."""


def bare(value: Any) -> Any:
    """Returns the function that one with a cache, or one that stands for it during capture, calls."""
    if isinstance(value, functools._lru_cache_wrapper) or getattr(type(value), "is_uncached", False):
        return value.__wrapped__
    return value


def _size(value: Any, most: int) -> int:
    """Returns how many parts a container of numbers has, and those in it; more than ``most`` for anything else."""
    if type(value) not in _CONTAINERS or len(value) > most:
        return most + 1
    total = len(value)
    for part in (*value, *value.values()) if isinstance(value, dict) else value:
        if not is_number(part):
            total += _size(part, most - total)
        if total > most:
            return most + 1
    return total


class _Freezer:
    def __init__(self, without: Callable[[Any, Any], bool] | None = None) -> None:
        self._without = without or (lambda key, held: False)
        self._left = _MOST
        self._open: dict[int, int] = {}

    def freeze(self, value: Any) -> Any:
        self._left -= 1
        kind = type(value)
        if is_number(value):
            return _number(value)
        if isinstance(value, torch.Tensor):
            return ("tensor",)
        value = bare(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, (MethodType, staticmethod, classmethod)):
            return _NAMES.get(kind, kind), "of", self.freeze(value.__func__)
        if isinstance(value, property):
            return kind, "of", self.freeze(value.fget)
        if isinstance(value, partial):
            return kind, self.freeze(value.func), self.freeze(value.args), self.freeze(value.keywords)
        if isinstance(value, _OPAQUE):
            return _NAMES.get(kind, kind), getattr(value, "__qualname__", "")
        if self._left < 0:
            return kind
        if isinstance(value, enum.Enum):
            return kind, value.name
        if _size(value, _FEW) > _FEW:  # whether a few numbers are one object or several may change by a copy
            if id(value) in self._open:
                return "again", self._open[id(value)]
            self._open[id(value)] = len(self._open)
        return kind, self._parts(value)

    def _function(self, value: FunctionType) -> Any:
        """Returns what tells two functions apart: their code, and the numbers and functions that they hold."""
        if value.__closure__ is None and value.__defaults__ is None and not value.__kwdefaults__:
            return value.__module__, value.__qualname__, _written(value.__code__), (), ()
        if id(value) in self._open:
            return "again", self._open[id(value)]
        self._open[id(value)] = len(self._open)
        code, held = value.__code__, []
        for cell in value.__closure__ or ():
            try:
                held.append(self._held(cell.cell_contents))
            except ValueError:  # a variable without a value
                held.append("")
        given = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        defaults = [self.freeze(one) if isinstance(one, _CONTAINERS) else self._held(one) for one in given]
        return value.__module__, value.__qualname__, _written(code), tuple(held), tuple(defaults)

    def _held(self, value: Any) -> Any:
        return self.freeze(value) if is_number(value) or isinstance(value, _CODE) else ""

    def _parts(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return tuple(
                (self.freeze(key), self.freeze(item))
                for key, item in islice(value.items(), max(0, self._left))
                if not self._without(key, item)
            )
        if isinstance(value, (list, tuple, deque)):
            return (len(value), *(self.freeze(item) for item in islice(value, max(0, self._left))))
        if isinstance(value, Set):
            items = islice(value, max(0, self._left))
            return frozenset(self.freeze(item) for item in items if not self._without(item, MISSING))
        attributes = getattr(value, "__dict__", None)
        plain = type(value) is SimpleNamespace or "__reduce__" not in _own(type(value))
        if isinstance(attributes, dict) and attributes and plain:
            return tuple((name, self.freeze(item)) for name, item in list(attributes.items()))
        try:
            return pickle.dumps(value)
        except Exception:  # what cannot be pickled has no state that can be compared
            return ""
