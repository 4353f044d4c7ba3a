"""Gradients that forward computes are refused by line; inference mode only turns them off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.errors import CaptureError
from tests.capture.models import Then, gradients, run


def force(y: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(y.tanh().sum(), y, create_graph=True)[0]


def inner_step(y: torch.Tensor) -> torch.Tensor:
    weight = torch.ones(6, requires_grad=True)
    (weight * y.detach()).sum().backward()
    return y * weight.grad


def inner_steps(y: torch.Tensor) -> torch.Tensor:
    weight = torch.ones(6, requires_grad=True)
    torch.autograd.backward([(weight * y.detach()).sum()])
    return y * weight.grad


def functional(y: torch.Tensor) -> torch.Tensor:
    return torch.func.grad(lambda t: t.sin().sum())(y)


def pulled_back(y: torch.Tensor) -> torch.Tensor:
    return torch.func.vjp(torch.sin, y)[1](y)[0]


def jacobian(y: torch.Tensor) -> torch.Tensor:
    return torch.autograd.functional.jacobian(torch.sin, y[0], create_graph=True)


@pytest.mark.parametrize("function", [force, inner_step, inner_steps, functional, pulled_back, jacobian])
def test_gradients_in_forward_are_named_with_their_line(function: Callable[..., Any]) -> None:
    with pytest.raises(CaptureError, match=r"Then cannot be captured: its forward computes gradients .*test_gradients"):
        capture(Then(function), torch.randn(4, 6))


def test_inference_mode_turns_gradients_off_as_no_grad_does() -> None:
    class Target(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                target = super().forward(x)
                with torch.inference_mode(False):
                    again = super().forward(x)
            return super().forward(x) + target.sum() + again

    before = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    model, x = Target(6, 6), torch.randn(4, 6)
    captured = capture(model, x)
    assert (torch.inference_mode.__enter__, torch.inference_mode.__exit__) == before
    original = copy.deepcopy(model)
    torch.testing.assert_close(run(model, captured, "train", x), original(x))
    wanted = gradients(original, original(x).square().sum())
    for name, found in gradients(model, run(model, captured, "train", x).square().sum()).items():
        torch.testing.assert_close(found, wanted[name])
