"""Variables of enclosing functions are found at the function that reads them, quickly and also among its likes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.ir.reads import changed_read

Scaled = tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[bool], None]]


def scaled(by: float) -> Scaled:
    """Returns a function that scales if it is told to, and one that tells it."""
    on = True

    def scale(h: torch.Tensor) -> torch.Tensor:
        return h * by if on else h

    def turn(value: bool) -> None:
        nonlocal on
        on = value

    return scale, turn


class Scaling(nn.Module):
    def __init__(self, scale: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(self.layer(x))


def test_of_functions_with_one_code_that_which_ran_is_asked() -> None:
    made = [scaled(2.0), scaled(3.0), scaled(4.0)]
    for number, (scale, turn) in enumerate(made):
        model = Scaling(scale)
        reads = [read for read in capture(model, torch.randn(2, 4)).programs["train"].reads if read.name == "on"]
        assert [read.value for read in reads] == [(bool, True)]
        for other in (*made[:number], *made[number + 1 :]):
            other[1](False)
        assert changed_read(reads, model) is None
        turn(False)
        assert changed_read(reads, model) is reads[0]
        for other in made:
            other[1](True)


def test_functions_are_searched_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scale, _turn = scaled(2.0)
    searched: list[Any] = []
    search = gc.get_referrers

    def counting(*objects: Any) -> list[Any]:
        searched.extend(objects)
        return search(*objects)

    monkeypatch.setattr(gc, "get_referrers", counting)
    capture(Scaling(scale), torch.randn(2, 4))
    capture(Scaling(scale), torch.randn(2, 4))
    assert searched.count(scale.__code__) <= 1  # type: ignore[attr-defined]
