"""Assertions on tensor values are found in bytecode, and nothing else is taken for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.errors import CaptureError
from tests.capture import asserting
from tests.capture.models import Then, run


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (asserting.asserted, [True]),
        (asserting.asserted_with_a_message, [True]),
        (asserting.asserted_not, [False]),
        (asserting.both, [True, True]),
        (asserting.neither, [False, False]),
        (asserting.raised, [False]),
        (asserting.raised_without, [True]),
        (asserting.raised_by_either, [False, False]),
        (asserting.within, [True]),
        (asserting.branch, [None]),
        (asserting.caught, [None]),
        (asserting.finished, [None]),
    ],
)
def test_the_value_that_goes_on(function: Callable[[asserting.Truth], Any], expected: list[bool | None]) -> None:
    truth = asserting.Truth()
    function(truth)
    assert truth.expected == expected


def test_an_alternative_is_no_assertion() -> None:
    truth = asserting.Truth()
    with pytest.raises(AssertionError):
        asserting.alternative(truth)
    assert truth.expected == [None]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (asserting.item, True),
        (asserting.compared_item, True),
        (asserting.item_between, True),
        (asserting.item_in_a_branch, False),
        (asserting.item_beside, False),
        (asserting.item_in_a_function, False),
        (asserting.item_kept, False),
        (asserting.item_caught, False),
    ],
)
def test_numbers_of_assertions(function: Callable[[asserting.Item], Any], expected: bool) -> None:
    item = asserting.Item()
    function(item)
    assert item.found == [expected]


_CHECKS = [asserting.finite, asserting.no_nan, asserting.bounded, asserting.finite_item, asserting.bounded_item]


class Checked(nn.Module):
    """Two inputs and an assertion on what is computed from them."""

    def __init__(self, check: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self.linear, self.check = nn.Linear(5, 6), check

    def forward(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.linear(x)
        self.check(h)
        return h * weight


@pytest.mark.parametrize("check", _CHECKS)
def test_assertions_on_values_stay_assertions(check: Callable[[torch.Tensor], None]) -> None:
    model, x, weight = Checked(check), torch.randn(4, 5), torch.randn(4, 1)
    captured = capture(model, (x, weight))
    for rows in (4, 3):
        x, weight = torch.randn(rows, 5), torch.randn(rows, 1)
        assert torch.equal(run(model, captured, "train", x, weight), model(x, weight))
    with pytest.raises(RuntimeError, match=r"assertion failed.*asserting\.py:\d+: (assert|if) "):
        run(model, captured, "eval", x * float("nan"), weight)


def test_a_branch_on_values_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"depends on tensor values at .*test_assertions\.py"):
        capture(Then(lambda y: y if y.sum() > 0 else -y), torch.randn(4, 6))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return -grad


@pytest.mark.parametrize("before", [asserting.finite, asserting.no_nan])
def test_a_custom_gradient_beside_an_assertion_is_refused(before: Callable[[torch.Tensor], None]) -> None:
    def function(y: torch.Tensor) -> torch.Tensor:
        before(y)
        return Reversed.apply(y)  # type: ignore[no-any-return]

    with pytest.raises(CaptureError, match=r"custom backward of autograd\.Function"):
        capture(Then(function), torch.randn(4, 6))
