"""A gradient that overflows on one worker skips the step on all of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdp_compile import GradScaler, NeuronPolicy, sdp_compile
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(120)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


def train(rank: int, fused: bool) -> tuple[list[float], list[bool], dict[str, torch.Tensor]]:
    """Three steps, in the second of which the loss of worker 2 overflows: scales, whether a step was made, weights."""
    model = sdp_compile(network(), NeuronPolicy(coverage=0.5), torch.randn(4, 6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    scaler = GradScaler(init_scale=1024.0)
    generator = torch.Generator().manual_seed(rank)
    scales, moved = [], []
    for step in range(3):
        loss = model(torch.randn(4, 6, generator=generator)).square().mean()
        if (step, rank) == (1, 2):
            loss = loss * float("inf")
        optimizer.zero_grad()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        pairs = zip(before, model.parameters(), strict=True)
        moved.append(any(not torch.equal(old, new) for old, new in pairs))
    return scales, moved, model.full_state_dict()


@pytest.mark.parametrize("fused", [False, True])
def test_all_workers_skip_together(fused: bool) -> None:
    results = run_workers(train, 4, fused)
    for scales, moved, state in results:
        assert scales == [1024.0, 512.0, 512.0] and moved == [True, False, True]
        for name, value in state.items():
            assert torch.isfinite(value).all()
            assert torch.equal(value, results[0][2][name])


def test_it_is_the_original_without_peers() -> None:
    model = nn.Linear(6, 4)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), GradScaler("cpu", init_scale=8.0)
    scaler.scale(model(torch.randn(4, 6)).mean()).backward()
    scaler.unscale_(optimizer)
    norm = model.bias.grad.norm().item()
    assert norm == pytest.approx(0.5)  # four equal shares of 1
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 8.0
