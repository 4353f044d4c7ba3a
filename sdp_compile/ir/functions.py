"""Compares functions and plain values that are found by name with those of an earlier call, fast if they are equal."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import BuiltinFunctionType, CellType, FunctionType
from typing import Any

from sdp_compile.ir.plain import MISSING, is_number


def held_by(kind: Any, name: str) -> Any:
    """Returns a method or property of a class as it is written there or in a base."""
    return inspect.getattr_static(kind, name, MISSING)


def has_marks(value: Any) -> bool:
    """Whether `Marks` tell of every change of a value: of a number, a text, a function, and of a table of such."""
    if type(value) is dict:
        return len(value) <= _MOST and all(is_number(key) and _is_plain(one) for key, one in value.items())
    return _is_plain(value)


def _is_plain(value: Any) -> bool:
    return is_number(value) or isinstance(value, (FunctionType, BuiltinFunctionType, type))


_MOST = 200


class Marks:
    """What identifies the values in some places.

    Args:
        getters: For each place what returns its value, or a default, and the name that it takes.
    """

    def __init__(self, getters: Iterable[tuple[Callable[[str, Any], Any], str]]) -> None:
        self._getters = list(getters)

    def now(self) -> list[Any]:
        """Returns objects that are the same as at another time if nothing has changed."""
        found: list[Any] = []
        for get, name in self._getters:
            value = get(name, MISSING)
            kind = type(value)
            found.append(kind)  # True equals 1
            if kind is not dict:
                found.append(value)
                if kind is FunctionType:
                    _add_parts(value, found)
                continue
            held = list(value.values())
            found += [*value, *map(type, held), *held]
            for one in held:
                if type(one) is FunctionType:
                    _add_parts(one, found)
        return found


def _add_parts(function: FunctionType, found: list[Any]) -> None:
    found.append(function.__code__)
    if function.__closure__ is not None:
        found += map(_content, function.__closure__)
    if function.__defaults__ is not None:
        found.append(_parts(function.__defaults__))
    if function.__kwdefaults__:
        found.append(_parts(tuple(function.__kwdefaults__.values())))


def _content(cell: CellType) -> Any:
    try:
        value = cell.cell_contents
    except ValueError:  # a variable without a value
        return None
    return value if is_number(value) else id(value)


def _parts(values: tuple[Any, ...]) -> Any:
    """Returns numbers as they are, so that their values are compared, and what else by identity."""
    for value in values:
        if value is not None and not is_number(value):
            return [repr(value) if isinstance(value, (list, dict, set, tuple)) else id(value) for value in values]
    return values
