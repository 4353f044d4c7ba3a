"""What forward computes from a number and asks of it is noted, and so is every way out."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sdp_compile.capture.escapes import escapes, following_math
from sdp_compile.capture.traced import BecomingTensors, Tape, Traced, traced_math
from sdp_compile.ir.numbers import Numbers, Place


def traced(value: float = 0.9) -> tuple[Tape, Traced]:
    tape = Tape([value - 1e-7], [value])
    return tape, Traced(tape, 0)


def replay(value: float, tape: Tape) -> list[Any]:
    known = [value]
    for step in tape.steps:
        known.append(step.value(known))
    return known


COMPUTED: list[Callable[[Any], Any]] = [
    lambda x: 2 * x + 1,
    lambda x: (1 - x) ** 2 / 3 - x // 0.4 + x % 0.3,
    lambda x: -x + abs(x - 2) + 2**x,
    lambda x: max(x, 0.1) * min(0.5, x),
    lambda x: sum([x, x / 3, 1.0]),
    lambda x: traced_math(math.exp)(x) + traced_math(math.pow)(2.0, x),
]


@pytest.mark.parametrize("function", COMPUTED)
def test_steps_give_what_python_computes(function: Callable[[Any], Any]) -> None:
    tape, x = traced()
    result = function(x)
    assert type(result) is Traced and not tape.lost
    assert tape.true[result.index] == function(0.9)
    for value in (0.8, 1.3, 0.31):
        answers = [step.value(replay(value, tape)) for step, _ in tape.conditions.values()]
        if answers == [answer for _, answer in tape.conditions.values()]:
            assert replay(value, tape)[result.index] == function(value)


def test_questions_are_answered_with_the_true_value() -> None:
    tape = Tape([0.3, 0.30001], [0.5, 0.5])
    one, other = Traced(tape, 0), Traced(tape, 1)
    assert one == 0.5 and other == one and not one < 0.5 and int(one * 4) == 2 and round(other) == 0 and one
    assert one != "0.5" and one is not None and one in (0.1, 0.5)
    assert len(tape.conditions) == 7 and not tape.lost
    numbers = Numbers(((), ()), (), tuple(tape.conditions.values()), ())
    assert numbers.conditions[0][1] is True


LOST: list[Callable[[Any], Any]] = [
    float,
    str,
    repr,
    hash,
    "{:.1f}".format,
    lambda x: f"{x}",
    lambda x: divmod(x, 2),
    lambda x: x * np.float64(2),
    lambda x: np.arange(2) * x,
    lambda x: x.is_integer(),
    lambda x: (-x) ** 0.5,
    lambda x: traced_math(math.fsum)([x, 1.0]),
    lambda x: traced_math(math.isclose)(x, 0.5, rel_tol=0.1),
]


@pytest.mark.parametrize("function", LOST)
def test_ways_out_are_noted(function: Callable[[Any], Any]) -> None:
    tape, x = traced()
    function(x)
    assert tape.lost


def test_tensors_and_copies_are_no_way_out() -> None:
    tape, x = traced()
    h = torch.ones(3)
    for result in (h * x, x * h, x - h, h**x, x**h, torch.full((3,), x)):
        assert isinstance(result, torch.Tensor)
    assert copy.deepcopy([x])[0] is x and copy.copy(x) is x and x.real is x and +x is x
    assert isinstance(x, float) and type(pickle.loads(pickle.dumps(x))) is float
    assert not tape.lost and not tape.steps


def test_tensors_made_from_numbers_are_noted() -> None:
    h = torch.ones(3)

    def assign(x: float) -> None:
        h[0] = x

    for function in (torch.tensor, torch.as_tensor, lambda x: torch.tensor([[x]]), h.new_tensor, assign):
        tape, x = traced()
        with BecomingTensors(tape):
            function(x)
        assert tape.lost


@pytest.mark.parametrize("function", [lambda x: x * 0 + 1, lambda x: x // 1, lambda x: x / 2 - x * 0.5])
def test_marks_that_tell_nothing(function: Callable[[Any], Any]) -> None:
    tape, x = traced()
    assert tape.is_clear()
    function(x)
    assert not tape.is_clear()


def of_math(x: float) -> float:
    return math.exp(x)


def of_type(x: float) -> bool:
    return type(x) is float


def of_numpy(x: float) -> Any:
    return np.exp(x)


def of_text(x: float) -> bool:
    return "%.2f" % x == "0.90"  # noqa: UP031


def test_functions_of_the_user() -> None:
    tape, x = traced()
    functions = {of_math.__code__: globals()}
    assert not escapes(functions)
    with following_math(functions):
        assert type(of_math(x)) is Traced
        assert of_math(1.0) == math.exp(1.0)
    assert math.exp is of_math.__globals__["math"].exp and globals()["math"] is math
    assert escapes({of_type.__code__: globals()}) and escapes({of_numpy.__code__: globals()}) and escapes(None)
    assert escapes({of_text.__code__: globals()})
    assert not tape.lost


def test_numbers_of_a_model() -> None:
    model: Any = torch.nn.Linear(2, 2)
    model.rate, model.config = 0.5, {"list": [1.0, 0.25]}
    tape, x = traced(0.5)
    assert x > 0.2
    steps = 3 * x
    places = ((Place("attribute", "", "rate"),), (Place("attribute", "", "config", ("list", 1)),))
    numbers = Numbers(places[:1], tuple(tape.steps), tuple(tape.conditions.values()), (steps.index, 0))
    assert numbers.now(model) == (1.5, 0.5) and not numbers.has_globals
    assert Numbers(places, (), (), (1,)).now(model) == (0.25,)
    assert Numbers(((*places[0], *places[1]),), (), (), (0,)).now(model) is None, "they differ"
    for value in (0.1, 0.0, math.inf, math.nan, 1, "0.5", None):
        model.rate = value
        assert numbers.now(model) is None
    del model.rate
    assert numbers.now(model) is None
