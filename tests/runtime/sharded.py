"""What the tests of ShardedOptimizer share: optimizers, a loop with all that a step can have, comparisons."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile import ShardedOptimizer, clip_grad_norm_
from sdp_compile.runtime.state.full_state import full_state_dict
from tests.runtime.stub import batch

WORKERS = 4
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


class Counting(torch.optim.Optimizer):
    """An element-wise optimizer that torch does not have, with state of its own in the groups."""

    def __init__(self, params: Any, lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "count": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["count"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                    mean.lerp_(parameter.grad + group["weight_decay"] * parameter, 0.1)
                    parameter.sub_(group["lr"] / group["count"] * mean)


OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    # A gradient that is 0 but for rounding must not be normalised to 1: hence eps.
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.05, "eps": 1e-4}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True, "eps": 1e-4}),
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2, "eps": 1e-4}),
    "nadam": (torch.optim.NAdam, {"lr": 1e-2, "eps": 1e-4}),
    "own": (Counting, {"lr": 1e-1}),
}
Backward = Callable[[int], None]


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0, "lr": 2e-3}]


def optimizer_of(model: Any, kind: str, sharded: bool) -> torch.optim.Optimizer:
    cls, options = OPTIMIZERS[kind]
    groups: Any = model.parameters() if kind == "nadam" else grouped(model)
    return ShardedOptimizer(model, cls, groups, **options) if sharded else cls(groups, **options)


def train(model: Any, optimizer: torch.optim.Optimizer, backward: Backward, steps: int) -> list[Tensor]:
    """A loop with all that a step can have: a schedule, accumulation, clipping. The norms of all gradients."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    norms = []
    for step in range(steps):
        with model.peers.no_sync() if step % 3 == 1 else nullcontext():
            backward(step + 500)  # where it is reduced already, the next one is reduced on top
        backward(step)
        norms.append(clip_grad_norm_(model, 0.5))
        optimizer.step()
        schedule.step()
        (model if step % 2 else optimizer).zero_grad()
    return norms


def check_owners(model: Any) -> None:
    """Every worker holds the first owners' bits."""
    full = full_state_dict(model)
    for name, parameter in model.named_parameters():
        value, mask = parameter.detach(), model.plan.mask(name, model.rank)
        assert torch.equal(value[mask] if value.shape == mask.shape else value.reshape(-1), full[name][mask])


def compare(sharded: dict[str, Any], plain: dict[str, Any], exactly: bool = True) -> None:
    """Full optimizer states."""
    assert sharded["param_groups"] == plain["param_groups"]
    assert list(sharded["state"]) == list(plain["state"])
    for name, entries in plain["state"].items():
        assert list(sharded["state"][name]) == list(entries)
        for key, value in entries.items():
            close = {"rtol": 0, "atol": 0} if exactly else CLOSE
            torch.testing.assert_close(sharded["state"][name][key], value, **close)


def backward_of(model: Any) -> Backward:
    def backward(step: int) -> None:
        x, y = batch(1000 * model.rank + step)
        F.cross_entropy(model(x.to(model.up.weight.dtype)).to(x.dtype), y).backward()

    return backward
