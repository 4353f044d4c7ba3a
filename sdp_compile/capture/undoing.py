"""Gives containers and objects back what they hold now."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, MutableMapping, MutableSequence
from functools import partial
from typing import Any

import numpy as np

from sdp_compile.capture.users import is_of_users

_GROWING = {"append", "appendleft", "extend", "insert", "add", "update", "setdefault"}
CHANGES = _GROWING | {"pop", "popleft", "popitem", "remove", "discard", "clear", "reverse", "sort"}
"""The names of methods that change a container."""


def undo_of(value: Any) -> Callable[[], object] | None:
    """Returns a function that gives a container or an object back what it holds now; None if it does not count."""
    if isinstance(value, (MutableSequence, deque)):
        return partial(_refill, value, value.extend, list(value))
    if isinstance(value, MutableMapping):
        return partial(_refill, value, value.update, dict(value))
    if isinstance(value, set):
        return partial(_refill, value, value.update, set(value))
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    if isinstance(value, np.random.Generator):
        return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if type(value).__module__ == "itertools":
        return int  # cannot be set back
    if is_of_users(type(value)) and not callable(value) and getattr(value, "__dict__", None):
        kinds = (MutableSequence, MutableMapping, set, deque)
        inner = [
            undo for held in vars(value).values() if isinstance(held, kinds) and (undo := undo_of(held)) is not None
        ]
        return partial(_all, [*inner, partial(_refill, vars(value), vars(value).update, dict(vars(value)))])
    return None


def _all(functions: Iterable[Callable[[], object]]) -> None:
    for function in functions:
        function()


def _refill(container: Any, fill: Callable[[Any], object], content: Any) -> None:
    container.clear()
    fill(content)
