"""Running statistics: merged over the owners of each channel, and re-estimated as plain averages over batches."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.runtime.state.full_state import full_state_dict
from sdp_compile.runtime.state.statistics import calibrate, running_statistics
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, connected
from tests.runtime.stub import SCATTERED, batch, capture_of, network, plan_of


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


def statistics(rank: int) -> Any:
    module = connected(rank, SCATTERED)
    for step in range(3 + rank):
        F.cross_entropy(module(batch(10 * rank + step)[0]), batch(10 * rank + step)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = full_state_dict(module)
    own = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return merged, own


def test_statistics_are_merged_over_the_owners_of_each_channel() -> None:
    found = run_workers(statistics, WORKERS)
    plan = plan_of(capture_of(network()), SCATTERED, WORKERS)
    for channel in range(16):
        owners = SCATTERED[channel // 2]
        positions = [int(plan.mask("norm.running_mean", rank)[:channel].sum()) for rank in owners]
        pairs = list(zip(owners, positions, strict=True))
        means = torch.stack([found[rank][1]["norm.running_mean"][at] for rank, at in pairs])
        variances = torch.stack([found[rank][1]["norm.running_var"][at] for rank, at in pairs])
        # The law of total variance for equally large samples.
        total = variances.mean() + means.var(correction=0)
        for merged, _ in found:
            torch.testing.assert_close(merged["norm.running_mean"][channel], means.mean(), rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(merged["norm.running_var"][channel], total, rtol=1e-12, atol=1e-14)
    for rank, (merged, own) in enumerate(found):
        assert merged["norm.num_batches_tracked"] == 6
        assert own["norm.num_batches_tracked"] == 3 + rank


def test_statistics_are_found_in_the_graph() -> None:
    found = running_statistics(capture_of(network()))
    assert found.means == ("norm.running_mean",)
    assert found.variances == (("norm.running_var", "norm.running_mean"),)
    assert found.counters == ("norm.num_batches_tracked",)
