"""Marks tell of every change of what they stand for, and frozen values can be pickled."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from sdp_compile.ir.functions import Marks, has_marks
from sdp_compile.ir.plain import frozen


def made(by: Any) -> Callable[..., Any]:
    def function(x: float = 1.0, *, y: Any = 2) -> Any:
        return x * by * y

    return function


def test_marks_are_equal_until_something_changes() -> None:
    scope: dict[str, Any] = {"number": 1, "table": {"a": made(2), "b": math.sin}, "function": made(3), "kind": int}
    assert all(map(has_marks, scope.values()))
    marks = Marks((scope.get, name) for name in (*scope, "missing"))
    function = scope["function"]
    changes: list[Callable[[], object]] = [
        lambda: scope.update(number=True),
        lambda: scope.update(number=1.0),
        lambda: scope["table"].update(a=made(2)),
        lambda: scope["table"].update(c=None),
        lambda: scope["table"].pop("b"),
        lambda: scope.update(kind=float),
        lambda: scope.update(missing=None),
        lambda: scope.pop("missing"),
        lambda: setattr(function, "__defaults__", (4.0,)),
        lambda: setattr(function, "__kwdefaults__", {"y": 5}),
        lambda: setattr(function.__closure__[0], "cell_contents", 6),
        lambda: setattr(function, "__code__", made(0).__code__.replace(co_name="other")),
        lambda: setattr(scope["table"]["a"].__closure__[0], "cell_contents", 7),
    ]
    for change in changes:
        before = marks.now()
        assert marks.now() == before
        change()
        assert marks.now() != before


@pytest.mark.parametrize("value", [[1], {"a": [1]}, {(1,): 2}, object(), dict.fromkeys(range(1000))])
def test_what_may_change_inside_has_no_marks(value: object) -> None:
    assert not has_marks(value)


@pytest.mark.parametrize("value", [math.sin, [].append, math, made(2), {"a": math.cos}, int, "text".join])
def test_frozen_values_can_be_pickled(value: object) -> None:
    assert pickle.loads(pickle.dumps(frozen(value))) == frozen(value)
