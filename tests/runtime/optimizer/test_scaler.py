"""A gradient that overflows on one worker skips the step on all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile import BlockPolicy, GradScaler, NeuronPolicy, ShardedOptimizer, sdp_compile
from tests.distributed import run_workers


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4))


class OtherDtypes(nn.Module):
    """Residual branches of two dtypes: where blocks are dropped, workers hold gradients of different dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(6, 8), nn.Linear(8, 4)
        self.branches = nn.ModuleList(nn.Linear(8, 8, dtype=dtype) for dtype in (torch.float64, torch.bfloat16) * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inputs(x)
        for branch in self.branches:
            x = x + branch(x.to(branch.weight.dtype)).to(x.dtype)
        return self.outputs(x)


def train(rank: int, scaler: torch.amp.GradScaler, case: str) -> Any:
    """Three steps, in the second of which the loss of worker 2 overflows: scales, whether a step was made, weights."""
    torch.manual_seed(0)
    blocks = case == "blocks"
    original, policy = (OtherDtypes(), BlockPolicy(coverage=0.5)) if blocks else (network(), NeuronPolicy(coverage=0.5))
    model = sdp_compile(original, policy, torch.randn(4, 6))
    if case == "sharded":
        optimizer: torch.optim.Optimizer = ShardedOptimizer(model, torch.optim.AdamW, lr=1e-2)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=case == "fused")
    generator = torch.Generator().manual_seed(rank)
    scales, moved, norms = [], [], []
    for step in range(3):
        loss = model(torch.randn(4, 6, generator=generator)).square().mean()
        if (step, rank) == (1, 2):
            loss = loss * float("inf")
        optimizer.zero_grad()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        scaler.scale(loss).backward()
        if case == "clipped":
            scaler.unscale_(optimizer)
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1e-3).item())
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        pairs = zip(before, model.parameters(), strict=True)
        moved.append(any(not torch.equal(old, new) for old, new in pairs))
    return scales, moved, norms, model.full_state_dict()


KINDS = {"torch": lambda: torch.amp.GradScaler("cpu", init_scale=1024.0), "sdp": lambda: GradScaler(init_scale=1024.0)}
CASES = ("plain", "fused", "clipped", "blocks", "sharded")


def every_case(rank: int) -> dict[tuple[str, str], Any]:
    return {(kind, case): train(rank, make(), case) for kind, make in KINDS.items() for case in CASES}


@pytest.fixture(scope="module")
def trained() -> list[Any]:
    return run_workers(every_case, 4, limit=240.0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_all_workers_skip_together(kind: str, case: str, trained: list[Any]) -> None:
    results = [own[kind, case] for own in trained]
    for scales, moved, norms, state in results:
        assert scales == [1024.0, 512.0, 512.0] and moved == [True, False, True]
        assert str(norms) == str(results[0][2])
        for name, value in state.items():
            assert torch.isfinite(value).all()
            assert torch.equal(value, results[0][3][name])
        torch.testing.assert_close(state, trained[0]["sdp", case][3], rtol=0, atol=0)


def without_gradient(rank: int) -> list[float]:
    """In both steps one worker finds an overflow; worker 1 has no gradient in the first."""
    model = sdp_compile(network(), NeuronPolicy(coverage=0.5), torch.randn(4, 6))
    optimizer, scaler, scales = torch.optim.SGD(model.parameters(), lr=1e-2), GradScaler(init_scale=8.0), []
    for step in range(2):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(4, 6)).square().mean()).backward()
        if step == 0 and rank == 1:
            optimizer.zero_grad()
        if rank == (2, 3)[step]:
            next(model.parameters()).grad[0] = float("nan")
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


def test_a_worker_without_gradients_takes_part() -> None:
    assert run_workers(without_gradient, 4) == [[4.0, 2.0]] * 4


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
