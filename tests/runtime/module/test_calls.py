"""Calls of a compiled module: bound like the original's, and refused where they were not captured."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.errors import SDPError
from sdp_compile.runtime.module.sdp_module import SDPModule
from tests.oracle import randomise
from tests.runtime.module.small import Small, compiled


def test_arguments_by_position_or_keyword() -> None:
    model = randomise(Small()).eval()
    x, more = torch.randn(4, 6), {"z": torch.randn(4, 6)}
    module = compiled(model, {"x": x, "more": more})
    expected = model(x, more)["y"]
    assert torch.equal(module(x, more)["y"], expected)
    assert torch.equal(module(x, more=more)["y"], expected)
    assert torch.equal(module(more=more, x=x)["y"], expected)
    assert torch.equal(module(x, more, 2.0)["y"], expected), "an argument at its default value need not be captured"


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, ["'x' is missing", "tensor[n0, 6]"]),
        ((torch.randn(4, 6), {"z": torch.randn(4, 6)}), {}, ["'more' was not part of the capture"]),
        ((torch.randn(4, 6),), {"scale": 3.0}, ["'scale' was not part of the capture"]),
        ((torch.randn(4, 6),), {"unknown": 3.0}, ["'unknown'"]),
        ((torch.randn(4, 6),), {"x": 3.0}, ["'x' was passed twice"]),
        ((torch.randn(4, 6), None, 2.0, 1), {}, ["4 positional"]),
        ((torch.randn(4, 5),), {}, ["'x' has size 5 in dimension 1", "6"]),
        ((torch.randn(4, 6, 1),), {}, ["'x' has 3 dimensions where 2"]),
        ((3.0,), {}, ["'x' is 3.0 where a tensor"]),
    ],
)
def test_calls_that_were_not_captured(small: SDPModule, args: Any, kwargs: Any, words: list[str]) -> None:
    with pytest.raises(SDPError) as caught:
        small(*args, **kwargs)
    for word in ("Small", "Captured: (", *words):
        assert word in str(caught.value)


def test_other_containers_and_values_are_refused() -> None:
    x = torch.randn(4, 6)
    module = compiled(Small(), {"x": x, "more": {"z": x}, "scale": 3.0})
    with pytest.raises(SDPError, match="another structure"):
        module(x, {"other": x}, 3.0)
    with pytest.raises(SDPError, match=r"2\.0 where 3\.0 was captured"):
        module(x, {"z": x}, 2.0)


def test_sizes_that_must_agree() -> None:
    class Sum(nn.Linear):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.cat([x, y], 1)) if x.shape[0] > 3 else x * y

    module = compiled(Sum(6, 6), (torch.randn(4, 3), torch.randn(4, 3)))
    assert module(torch.randn(5, 3), torch.randn(5, 3)).shape == (5, 6)
    with pytest.raises(SDPError, match=r"must equal"):
        module(torch.randn(5, 3), torch.randn(4, 3))


@pytest.mark.parametrize("fails", [True, False])
def test_a_failed_call_leaves_autocast_as_it_was(fails: bool) -> None:
    class Region(nn.Linear):
        def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)[index]

    module = compiled(Region(6, 6), (torch.randn(4, 6), torch.tensor([0, 1])))
    nesting = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    index = torch.tensor([0, 9 if fails else 1])
    with pytest.raises(IndexError) if fails else contextlib.nullcontext():
        assert module(torch.randn(4, 6), index).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
    assert torch.autocast_increment_nesting() == nesting
    torch.autocast_decrement_nesting()
