"""Compares functions that are found by name with those of an earlier call, fast where they are the same objects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import FunctionType
from typing import Any

from sdp_compile.ir.plain import MISSING, is_number


def held_by(kind: Any, name: str) -> Any:
    """Returns a method or property of a class as it is written there or in a base."""
    return inspect.getattr_static(kind, name, MISSING)


class Marks:
    """What identifies the functions in some places.

    Args:
        places: For each place what holds it, a dictionary or a class, and the name there.
    """

    def __init__(self, places: Iterable[tuple[Any, str]]) -> None:
        self._getters: Sequence[tuple[Callable[..., Any], str]] = [
            (partial(getattr, holder) if isinstance(holder, type) else holder.get, name) for holder, name in places
        ]

    def now(self) -> list[Any]:
        """Returns objects that are the same as at another time if nothing has changed."""
        found: list[Any] = []
        for get, name in self._getters:
            value = get(name, None)
            found.append(value)
            if type(value) is FunctionType:
                found.append(value.__code__)
                if value.__defaults__ is not None:
                    found.append(_parts(value.__defaults__))
                if value.__kwdefaults__:
                    found.append(_parts(tuple(value.__kwdefaults__.values())))
        return found


def _parts(values: tuple[Any, ...]) -> Any:
    """Returns numbers as they are, so that their values are compared, and what else by identity."""
    for value in values:
        if value is not None and not is_number(value):
            return [repr(value) if isinstance(value, (list, dict, set, tuple)) else id(value) for value in values]
    return values
