"""What a captured graph would silently lose is refused, and nothing of the watch stays behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.capture.observe import Observer
from sdp_compile.errors import CaptureError
from tests.capture.models import Then


class Opposite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient


opposite = Opposite.apply


def with_hook(x: torch.Tensor) -> torch.Tensor:
    x.register_hook(lambda gradient: gradient * 2)
    return x * 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: Opposite.apply(x), ["Opposite", "test_observe.py", "Opposite.apply(x)", "custom_op"]),
        (opposite, ["test_observe.Opposite", "self.function(self.linear(x))"]),
        (with_hook, ["hook", "x.register_hook", "test_observe.py"]),
        (lambda x: with_hook(Opposite.apply(x)), ["Opposite", "; a hook"]),
    ],
    ids=["autograd.Function", "its apply under another name", "tensor hook", "both"],
)
def test_gradients_that_a_graph_would_lose_are_named(function: Callable[..., Any], words: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Then(function), torch.randn(4, 6))
    for word in ("Then", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("fails", [False, True])
def test_the_watch_is_taken_down(fails: bool) -> None:
    checkpoint = torch.utils.checkpoint
    before = torch.Tensor.register_hook, checkpoint.CheckpointFunction, dict(vars(checkpoint))
    try:
        with Observer(nn.Linear(2, 2), nn.Linear(2, 2)):
            assert torch.Tensor.register_hook is not before[0]
            assert "__getattribute__" in vars(torch.autograd.function.FunctionMeta)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    assert "__getattribute__" not in vars(torch.autograd.function.FunctionMeta)
    assert (torch.Tensor.register_hook, checkpoint.CheckpointFunction, dict(vars(checkpoint))) == before


def test_functions_of_torch_itself_are_no_loss() -> None:
    """Checkpointing is an autograd.Function of torch; its regions are marked instead."""
    observer = Observer(nn.Linear(2, 2), nn.Linear(2, 2))
    with observer:
        torch.utils.checkpoint.checkpoint(torch.relu, torch.ones(2, requires_grad=True), use_reentrant=True)
    observer.check()


def test_sizes_that_become_long_formulas_are_fixed() -> None:
    """Padding to multiples of a window makes every later size a formula of remainders."""

    class Padding(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.shape[1]
            return nn.functional.pad(x, (0, (7 - rows % 7) % 7))

    captured = capture(Padding(), torch.ones(2, 10))
    assert captured.programs["train"].inputs[0].dims == ("n0", 10)


def test_sizes_that_depend_on_values_cannot_be_fixed() -> None:
    class Selecting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x[x[:, 0] > 0]
            return nn.functional.pad(rows, (0, 0, 0, (7 - rows.shape[0] % 7) % 7))

    with pytest.raises(CaptureError, match=r"test_observe\.py:\d+: "):
        capture(Selecting(), torch.randn(6, 3))
