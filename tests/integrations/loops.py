"""Twenty steps with clipping and accumulation: written by hand, and simulated densely with the original eager model.

With a schedule the plan and the learning rate follow it.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from sdp_compile import NeuronPolicy, Phase, Plan, Schedule, SDPModule, plan, sdp_compile
from tests.runtime.models import Transformer, batch, loss_of
from tests.runtime.test_end_to_end import masked_gradients

NAME = "transformer"
STEPS, SAVED_AT, ACCUMULATED = 20, 10, 2
MAX_NORM = 0.3
BATCHES = 20
"""Of an epoch, so that training takes two."""

POLICY = NeuronPolicy(coverage=0.5)

SCHEDULE = Schedule(
    [
        Phase(POLICY, share=0.25),
        Phase(NeuronPolicy(coverage=0.75, design="random"), share=0.45, resample_every=4, learning_rate=0.5),
        Phase(POLICY.replace(masking="backward"), share=0.2),
        Phase(NeuronPolicy(coverage=1.0), share=0.1),
    ],
    rate_by_owners=0.5,
)
"""Without its number of steps. The step that is saved is within the second phase, after other owners were drawn."""


def seed_of(rank: int, number: int) -> int:
    return 1000 * rank + number % BATCHES


def batch_of(rank: int, number: int) -> Tensor:
    """The batch of a worker, by its number since the start."""
    return batch(NAME, seed_of(rank, number))


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return loss_of(NAME, model(x), x)


def original(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return Transformer(layers=1).to(dtype)


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.05)


def compiled(dtype: torch.dtype = torch.float64, policy: Any = POLICY) -> SDPModule:
    return sdp_compile(original(dtype), policy, (batch_of(0, 0),))


def by_hand(rank: int, module: SDPModule, optimizer: Any = None, steps: int = STEPS, autocast: Any = None) -> Any:
    """Trains, and returns the full model's state."""
    optimizer = optimizer or optimizer_of(module.parameters())
    scheduler = None if module.schedule is None else LambdaLR(optimizer, module.schedule.rate)
    for step in range(steps):
        if scheduler is not None:
            module.advance(step, optimizer)
        for part in range(ACCUMULATED):
            with nullcontext() if part == ACCUMULATED - 1 else module.no_sync():
                with autocast or nullcontext():
                    value = loss(module, batch_of(rank, ACCUMULATED * step + part))
                (value / ACCUMULATED).backward()
        nn.utils.clip_grad_norm_(module.parameters(), MAX_NORM)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()
    return module.full_state_dict()


def plans_of(schedule: Schedule, workers: int) -> list[Plan]:
    """The plan of each step."""
    return [plan(original(), schedule.policy_at(step), (batch_of(0, 0),), workers=workers) for step in range(STEPS)]


def simulated(plans: list[Plan], schedule: Schedule | None = None) -> dict[str, Tensor]:
    """The full model's state, by the original eager model with masked parameters, given the plan of each step."""
    model, norms = original(), []
    optimizer = optimizer_of([{"params": [one]} for one in model.parameters()])
    peak = optimizer.defaults["lr"]
    for step, one in enumerate(plans):
        numbers = range(ACCUMULATED * step, ACCUMULATED * (step + 1))
        seeds = {worker: [seed_of(worker, number) for number in numbers] for worker in range(one.workers)}
        for key, gradient in masked_gradients(model, NAME, one, seeds).items():
            model.get_parameter(key).grad = gradient / ACCUMULATED
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM))
        for group, (key, _) in zip(optimizer.param_groups, model.named_parameters(), strict=True):
            if schedule is not None:
                owned = torch.stack([one.mask(key, worker) for worker in range(one.workers)]).double().mean().item()
                group["lr"] = peak * schedule.rate(step) * owned**schedule.rate_by_owners
        optimizer.step()
    assert all(norm > 2 * MAX_NORM for norm in norms)  # clipping matters
    return model.state_dict()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def as_under_torchrun() -> None:
    """Lets Lightning recognise that the processes are there already."""
    os.environ["TORCHELASTIC_RUN_ID"] = "test"
