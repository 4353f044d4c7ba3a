"""Whatever one worker does to gradients, values or options on its own is an error on all workers, soon."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.errors import DistributedError
from sdp_compile.runtime.owners import comparison
from sdp_compile.runtime.owners.parts import SHARES
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, connected, loss_of
from tests.runtime.stub import CYCLIC

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")

Act = Callable[[int, int, nn.Module, torch.optim.Optimizer], Any]
"""What is done between backward and step: (rank, step, module, optimizer); "skip" skips the step."""


def trained(
    rank: int,
    act: Act,
    module: nn.Module | None = None,
    make: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(p, lr=1e-2),
    steps: int = SHARES + 3,
) -> tuple[int, str]:
    """Trains until an error; returns the number of the step, and the error."""
    module = connected(rank, CYCLIC) if module is None else module
    optimizer = make(list(module.parameters()))
    for step in range(steps):
        try:
            optimizer.zero_grad()
            loss_of(module, 100 * rank + step).backward()
            if act(rank, step, module, optimizer) != "skip":
                optimizer.step()
        except DistributedError as error:
            return step, str(error)
    try:
        module.peers.engine.meet().finish()  # what is late
    except DistributedError as error:
        return steps, str(error)
    return -1, ""


@torch.no_grad()
def scaled(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(1 + rank)


@torch.no_grad()
def noise(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    if rank == 2 and step >= 2:
        module.up.weight.grad += 1e-12 * torch.randn_like(module.up.weight)


def other_learning_rate(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    if rank == 1 and step == 3:
        optimizer.param_groups[0]["lr"] *= 0.5


def other_decay(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.1 * rank


def skips(rank: int, step: int, module: nn.Module, optimizer: Any) -> Any:
    return "skip" if rank == 3 and step == 4 else None


def clips(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    norm = torch.linalg.vector_norm(torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None]))
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(0.01 / norm)


@torch.no_grad()
def sets_a_value(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    if rank == 0 and step == 1:
        module.down.weight[0, 0] += 1.0


@torch.no_grad()
def not_a_number(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    if rank == 1 and step == 2:
        module.tied.grad[0] = float("nan")


@torch.no_grad()
def initialises(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    if step == 0:
        torch.manual_seed(3)
        for parameter in module.parameters():
            nn.init.normal_(parameter)


@torch.no_grad()
def permutes(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    if rank == 1 and step == 1:
        module.down.weight.copy_(module.down.weight.flip(0))


def plateau(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    if not hasattr(optimizer, "scheduler"):
        optimizer.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    optimizer.scheduler.step(float(-rank * step))


def freezes(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    if rank == 1 and step == 2:
        module.up.weight.requires_grad_(False)


def thaws(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    module.up.weight.requires_grad_(rank == 3 and step >= 2)


def only_gradients(rank: int, step: int, module: nn.Module, optimizer: Any) -> None:
    leaves = [p for p in module.parameters() if p.requires_grad and p is not module.idle]
    optimizer.zero_grad()
    for parameter, gradient in zip(leaves, torch.autograd.grad(loss_of(module, 7 * rank), leaves), strict=True):
        parameter.grad = gradient
    module.peers.sync_gradients()


FAULTS: dict[str, tuple[Act, int, int, list[str]]] = {
    "scaled": (scaled, 0, 0, ["The gradient of", "workers? ", "sdp.clip_grad_norm_"]),
    "noise": (noise, 2, 2 + SHARES, ["The gradient of 'up.weight'", "units .* of 'hidden'", "worker 2"]),
    "learning rate": (other_learning_rate, 3, 3, ["lr is 0.01 on workers 0, 2, 3 and 0.005 on worker 1"]),
    "weight decay": (other_decay, 0, 0, ["weight_decay is", "same options"]),
    "skipped": (skips, 4, 5, ["Workers 0, 1, 2 are in an optimizer's step, while worker 3 is in a backward pass"]),
    "clipped": (clips, 0, 0, ["The gradient of"]),
    "value": (sets_a_value, 1, 1 + SHARES, ["The value of 'down.weight'", "load_full_state_dict"]),
    "nan": (not_a_number, 2, 2 + SHARES, ["The (gradient|value) of 'tied' differs", "worker 1"]),
    "init": (initialises, 0, 0, ["The value of", "nn.init"]),
    "permuted": (permutes, 1, 1 + SHARES, ["The value of 'down.weight'"]),
    "plateau": (plateau, 0, 4, ["lr is", "scheduler"]),
    "frozen": (freezes, 2, 2, ["requires_grad of 'up.weight' differs", "worker 1", "on all workers alike"]),
    "thawed": (thaws, 2, 2, ["requires_grad of 'up.weight' differs", "worker 3"]),
    "autograd.grad": (only_gradients, 0, 0, ["The gradient of", "autograd.grad"]),
}
"""For each fault: what is done, the first and the last step at which it may be found, and what the error says."""


def faults(rank: int, late: bool) -> Any:
    comparison.LATE = late
    return {name: trained(rank, act) for name, (act, *_) in FAULTS.items()}


@pytest.mark.parametrize("late", [False, True])
def test_a_difference_is_the_same_error_on_all_workers(late: bool) -> None:
    found = run_workers(faults, WORKERS, late)
    for name, (_, first, last, texts) in FAULTS.items():
        steps, errors = zip(*(own[name] for own in found), strict=True)
        assert len(set(errors)) == 1, (name, errors)
        of_options = name in ("learning rate", "weight decay", "skipped", "plateau")
        of_options |= name in ("frozen", "thawed")
        assert first <= min(steps) <= max(steps) <= last + (late and not of_options), (name, steps, errors[0])
        for text in texts:
            assert re.search(text, errors[0]), (name, errors[0])
