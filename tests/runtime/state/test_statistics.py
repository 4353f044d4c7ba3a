"""Re-estimated running statistics are plain averages over the batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.runtime.state.statistics import calibrate


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.second = nn.InstanceNorm1d(3, track_running_stats=True)
        self.plain = nn.LayerNorm(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.second(self.drop(self.first(x))))


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, 5, generator=generator) * (1 + n) + n for n in range(4)]


def test_statistics_are_averages_over_the_batches(batches: list[Tensor]) -> None:
    model = Model().eval()
    model.first.train()
    with torch.no_grad():
        model.first.running_mean.fill_(7.0)
    before = {name: p.clone() for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    result = calibrate(model, [(x, torch.zeros(8)) for x in batches])
    assert result is model and torch.equal(torch.get_rng_state(), state)  # no dropout
    torch.testing.assert_close(model.first.running_mean, torch.stack([x.mean((0, 2)) for x in batches]).mean(0))
    torch.testing.assert_close(model.first.running_var, torch.stack([x.var((0, 2)) for x in batches]).mean(0))
    normal = [(x - x.mean((0, 2), True)) / (x.var((0, 2), correction=0, keepdim=True) + 1e-5).sqrt() for x in batches]
    torch.testing.assert_close(
        model.second.running_mean, torch.stack([x.mean((0, 2)) for x in normal]).mean(0), atol=1e-6, rtol=1e-5
    )
    expected = torch.stack([x.var(2).mean(0) for x in normal]).mean(0)
    torch.testing.assert_close(model.second.running_var, expected)
    assert model.first.momentum == 0.1 and model.second.momentum == 0.1
    assert model.first.training and not model.training and not model.drop.training
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def test_inputs_can_be_tensors_pairs_and_mappings(batches: list[Tensor]) -> None:
    means = []
    for kind in (list(batches), [[x, 0] for x in batches], [{"x": x} for x in batches]):
        means.append(calibrate(Model(), kind).first.running_mean)
    assert torch.equal(means[0], means[1]) and torch.equal(means[0], means[2])


def test_a_failure_leaves_the_statistics(batches: list[Tensor]) -> None:
    model = calibrate(Model(), batches)
    before = model.first.running_mean.clone()
    with pytest.raises(RuntimeError):
        calibrate(model, [batches[0], torch.zeros(2, 9)])
    assert torch.equal(model.first.running_mean, before)
    with pytest.raises(SDPError, match="no batches"):
        calibrate(model, [])
    assert torch.equal(model.first.running_mean, before) and model.first.momentum == 0.1


def test_a_model_without_statistics_is_left_alone() -> None:
    model = nn.Linear(2, 2)
    assert calibrate(model, iter([])) is model
