"""Training loops: clipping, scaling, gradients and parameters that nobody averages, schedulers, optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sdp_compile as sdp
from tests.distributed import run_workers
from tests.traps.small import (
    assert_owners_agree,
    backward,
    batch,
    compiled,
    original,
    owned,
    raised,
    train,
)

WORKERS = 4


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def autograd_grad(rank: int) -> str:
    module = compiled()
    optimizer, parameters = adamw(module.parameters()), list(module.parameters())

    def steps() -> None:
        for _ in range(3):
            x, y = batch()
            for parameter, gradient in zip(
                parameters, torch.autograd.grad(F.mse_loss(module(x), y), parameters), strict=True
            ):
                parameter.grad = gradient
            module.sync_gradients()
            optimizer.step()

    return raised(steps)


def init_after_compile(rank: int) -> str:
    module = compiled()
    torch.manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.02)
    return raised(module.full_state_dict)


def optimizer_before_compile(rank: int) -> str:
    model = original()
    optimizer = adamw(model.parameters())
    module = compiled(model)
    return raised(lambda: train(module, optimizer))


def uncompiled_head(rank: int) -> str:
    module, head = compiled(), nn.Linear(4, 4).double()
    optimizer = adamw([*module.parameters(), *head.parameters()])
    return raised(lambda: train(nn.Sequential(module, head), optimizer))


def plateau_scheduler(rank: int) -> str:
    module = compiled()
    optimizer = adamw(module.parameters())
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    metrics = iter([1.0, 2.0 if rank == 0 else 0.5])  # of the worker's own validation set

    def epochs() -> None:
        for metric in metrics:
            train(module, optimizer, steps=1)
            scheduler.step(metric)
        train(module, optimizer, steps=1)

    return raised(epochs)


def frozen_on_one_worker(rank: int) -> str:
    module = compiled()
    optimizer = adamw(module.parameters())
    train(module, optimizer, steps=1)
    if rank == 2:
        module.get_parameter("0.weight").requires_grad_(False)
    return raised(lambda: train(module, optimizer, steps=1))


NOTICED = {
    autograd_grad: ("The gradient of '0.weight'", "torch.autograd.grad(), which nobody averages"),
    init_after_compile: ("The value of '0.weight'", "nn.init after sdp.compile()"),
    optimizer_before_compile: ("the original model", "Build it after sdp.compile()"),
    uncompiled_head: ("outside the compiled model differs between worker 0", "Put it into the model"),
    plateau_scheduler: ("lr is 0.001 on worker 0 and 0.01 on workers 1, 2, 3", "average it over the workers"),
    frozen_on_one_worker: ("requires_grad of '0.weight' differs between", "worker 2", "on all workers alike"),
}
"""What is an error on all workers, and what it says."""


def clipped(rank: int, clip: Any) -> tuple[dict[str, Tensor], list[Tensor]]:
    module, norms = compiled(), list[Tensor]()
    train(module, adamw(module.parameters()), 5, lambda m: norms.append(clip(m).detach().clone()))
    return owned(module), norms


def scaled(rank: int) -> tuple[dict[str, Tensor], float]:
    module = compiled()
    optimizer, scaler = adamw(module.parameters()), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        optimizer.zero_grad()
        backward(module, scaler.get_scale() * (float("inf") if (step, rank) == (2, 1) else 1.0))
        scaler.scale(torch.zeros(()))  # the scale is known from the first call on
        scaler.step(optimizer)
        scaler.update()
    return owned(module), scaler.get_scale()


def everything(rank: int) -> Any:
    return (
        {trap.__name__: trap(rank) for trap in NOTICED},
        clipped(rank, lambda m: torch.nn.utils.clip_grad_norm_(m.parameters(), 0.05)),
        clipped(rank, lambda m: sdp.clip_grad_norm_(m, 0.05)),
        scaled(rank),
    )


@pytest.fixture(scope="module")
def found() -> list[Any]:
    return run_workers(everything, WORKERS)


@pytest.mark.parametrize("trap", NOTICED, ids=lambda trap: trap.__name__)
def test_what_would_drift_apart_is_an_error_on_all_workers(trap: Any, found: list[Any]) -> None:
    texts = {errors[trap.__name__] for errors, *_ in found}
    assert len(texts) == 1
    for part in NOTICED[trap]:
        assert part in next(iter(texts)), texts


def test_torch_s_clipping_is_that_of_the_full_model(found: list[Any]) -> None:
    _, by_torch, by_sdp, _ = zip(*found, strict=True)
    assert_owners_agree([own for own, _ in by_torch])
    for (own, norms), (expected, expected_norms) in zip(by_torch, by_sdp, strict=True):
        for name, value in own.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, equal_nan=True)
        torch.testing.assert_close(torch.stack(norms).double(), torch.stack(expected_norms).double())
        assert all(torch.equal(norm, first) for norm, first in zip(norms, by_torch[0][1], strict=True))


def test_torch_s_scaler_skips_on_all_workers_together(found: list[Any]) -> None:
    *_, results = zip(*found, strict=True)
    assert_owners_agree([own for own, _ in results])
    assert {scale for _, scale in results} == {512.0}


def test_a_hand_written_low_rank_bypass_is_cut_like_the_base() -> None:
    class LowRank(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.base = nn.Linear(inputs, outputs).requires_grad_(False)
            self.down, self.up = nn.Linear(inputs, 4, bias=False), nn.Linear(4, outputs, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.base(x) + self.up(self.down(x))
            return result

    shares = []
    for kind in (nn.Linear, LowRank):
        model = nn.Sequential(nn.LayerNorm(64), kind(64, 256), nn.GELU(), kind(256, 64))
        module = sdp.compile(model, sdp.NeuronPolicy(coverage=0.5), (torch.randn(4, 64),), workers=4, rank=0)
        shares.append(sum(p.numel() for p in module.parameters()) / sum(p.numel() for p in model.parameters()))
    assert shares == pytest.approx([0.5, 0.5], abs=0.02)
