"""Spectral norms in the assembled full model: the largest singular value of the whole weight."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm as hooked
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

import sdp_compile as sdp
from sdp_compile import NeuronPolicy
from tests.distributed import run_workers


class Model(nn.Module):
    """Every kind of spectral norm, one of them of a weight that another parametrization makes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = spectral_norm(nn.Linear(8, 16))
        self.second = hooked(nn.Linear(8, 16))
        self.third = spectral_norm(weight_norm(nn.Linear(8, 16)))
        self.image = hooked(nn.ConvTranspose2d(2, 16, 3, padding=1), n_power_iterations=2)
        self.heads = nn.ModuleList(nn.Linear(16, 8) for _ in range(4))
        self.whole = spectral_norm(nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        images = self.image(x.view(-1, 2, 2, 2)).mean((2, 3))
        parts = (self.first(x), self.second(x), self.third(x), images)
        return self.whole(sum(head(torch.relu(part)) for head, part in zip(self.heads, parts, strict=True)))


def weights(model: Any) -> dict[str, Tensor]:
    """The normalised weights in evaluation mode, as matrices whose largest singular value is to be 1."""
    model.eval()(torch.zeros(1, 8))
    image = model.image.weight.detach().transpose(0, 1).flatten(1)
    return {name: getattr(model, name).weight.detach() for name in ("first", "second", "third")} | {"image": image}


def _train(rank: int, masking: str) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    original = Model()
    x = torch.randn(6, 8)
    module = sdp.compile(original, NeuronPolicy(coverage=0.5, masking=masking), (x,))
    assert {family.units for family in module.plan.families} == {16} and len(module.plan.families) == 4
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    torch.manual_seed(100 + rank)
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(module(torch.randn(6, 8)), torch.randn(6, 2)).backward()
        optimizer.step()
    before = copy.deepcopy(module.state_dict())
    full: Any = module.full_model()
    for name, weight in weights(full).items():
        sigma = float(torch.linalg.matrix_norm(weight, 2))
        assert abs(sigma - 1) < (1e-9 if masking == "forward" else 0.1), (name, sigma)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    other = Model()
    other.load_state_dict(module.full_state_dict(), strict=True)
    for name, weight in weights(other).items():
        torch.testing.assert_close(weight, weights(full)[name], rtol=0, atol=0)
    held = module.get_buffer("whole.parametrizations.weight.0._u")  # its estimate is everyone's already
    assert torch.equal(full.get_buffer("whole.parametrizations.weight.0._u"), held)


@pytest.mark.parametrize("masking", ["forward", "backward"])
def test_the_full_model_divides_by_the_largest_singular_value_of_whole_weights(masking: str) -> None:
    run_workers(_train, 2, masking)
