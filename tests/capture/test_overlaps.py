"""Tensors of one model that share memory: refused where a change of one would change the other."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sdp_compile import CaptureError, NeuronPolicy, sdp_compile
from sdp_compile.capture import capture
from tests.capture import python_models as models


class Basis(nn.Module):
    """Two buffers that are views of one tensor, which forward multiplies by."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor) -> None:
        super().__init__()
        self.hidden = nn.Linear(6, 12)
        self.one, self.two = nn.Linear(12, first.shape[0]), nn.Linear(12, second.shape[0])
        self.register_buffer("first", first)
        self.register_buffer("second", second)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.hidden(x).relu()
        return self.one(h) @ self.first, self.two(h) @ self.second


def halves() -> list[tuple[torch.Tensor, torch.Tensor]]:
    whole = torch.randn(4, 10)
    return [
        (whole[:, :7], whole[:, 7:]),
        (whole[:, ::2], whole[:, 1::2]),
        (whole[:2], whole[2:]),
        (whole[:3], whole[1:]),  # overlap, but nothing writes to them
        (whole, whole.T),
    ]


@pytest.mark.parametrize("number", range(5))
def test_views_of_one_tensor_as_buffers(number: int) -> None:
    model = Basis(*halves()[number])
    module, x = sdp_compile(model, NeuronPolicy(coverage=0.5), torch.randn(3, 6), workers=2, rank=1), torch.randn(3, 6)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in masked.named_parameters():
            parameter.mul_(module.plan.mask(name, 1))
    torch.testing.assert_close(module(x), masked(x))
    assert sum(p.numel() for p in module.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())


def test_a_view_of_a_parameter_as_a_buffer() -> None:
    model = models.Small()
    model.register_buffer("copy", model.first.weight.detach()[2:])
    with pytest.raises(CaptureError, match=r"'copy' and 'first\.weight'.*clone\(\)"):
        capture(model, torch.randn(4, 5))
    model.copy = model.first.weight.detach().clone()
    capture(model, torch.randn(4, 5))


def test_a_view_of_a_parameter_as_an_attribute() -> None:
    model = models.Small()
    model.part = model.first.weight.detach()[2:]
    with pytest.raises(CaptureError, match=r"'part' and 'first\.weight'|'first\.weight' and 'part'"):
        capture(model, torch.randn(4, 5))


def test_parameters_that_share_elements() -> None:
    model = models.Small()
    model.other = nn.Parameter(model.first.weight.detach()[:, 1:])
    with pytest.raises(CaptureError, match="different tensors in the same memory"):
        capture(model, torch.randn(4, 5))
    model.first.weight = nn.Parameter(torch.randn(20, 5)[:16])
    model.other = nn.Parameter(model.first.weight.detach().new_empty(4, 5))
    capture(model, torch.randn(4, 5))


class Counting(models.Small):
    """Writes to a buffer in each call."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.last_seen.add_(1)
        return h + self.history.sum()


def test_a_buffer_that_forward_writes_to() -> None:
    model = Counting()
    model.register_buffer("history", torch.zeros(8))
    model.register_buffer("last_seen", model.history[3:5])
    with pytest.raises(CaptureError, match="'last_seen' and 'history'"):
        capture(model, torch.randn(4, 5))
    model.last_seen = torch.zeros(2)
    capture(model, torch.randn(4, 5))


def test_one_tensor_seen_as_two_types() -> None:
    model = Counting()
    model.register_buffer("history", torch.zeros(8))
    model.register_buffer("last_seen", model.history.view(torch.float64))
    with pytest.raises(CaptureError, match="'last_seen' and 'history'"):
        capture(model, torch.randn(4, 5))
