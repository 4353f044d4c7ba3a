"""What the tests of checkpoints share: a few steps of training, and all that a run's state is."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

import sdp_compile as sdp
from tests.runtime.models import batch, build, loss_of


class Batches:
    """A source of data with a position."""

    def __init__(self, name: str, rank: int) -> None:
        self.name, self.rank, self.position = name, rank, 0

    def __next__(self) -> torch.Tensor:
        self.position += 1
        return batch(self.name, 10_000 * self.rank + self.position)

    def state_dict(self) -> dict[str, Any]:
        return {"rank": self.rank, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["rank"] == self.rank, "another worker's position"
        self.position = state["position"]


def policy(kind: str) -> sdp.Policy:
    level, _, masking = kind.partition("-")
    cls = {"neuron": sdp.NeuronPolicy, "block": sdp.BlockPolicy}[level]
    return cls(coverage=0.5, masking=masking or "forward")


class Run:
    """One worker's training run.

    ``kind`` is the policy's level, perhaps with ``-backward``; ``dense`` is the original model on this process alone.
    """

    def __init__(
        self, name: str, kind: str, rank: int = 0, sharded: bool = False, lowering: str = "sliced", seed: int = 0
    ) -> None:
        self.name, self.rank = name, rank
        original = build(name, seed)
        self.model: Any = original
        if kind != "dense":
            self.model = sdp.compile(original, policy(kind), (batch(name, 0),), lowering=lowering)
        options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
        if sharded:
            self.optimizer: torch.optim.Optimizer = sdp.ShardedOptimizer(self.model, torch.optim.AdamW, **options)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), **options)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 5], gamma=0.5)
        self.batches = Batches(name, rank)

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            x = next(self.batches)
            noise = torch.rand(()) + random.random() + np.random.random()
            loss = loss_of(self.name, self.model(x), x) * (1 + 0.1 * noise)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    def save(self, folder: Any, step: int, **options: Any) -> Any:
        return sdp.save_checkpoint(
            folder,
            self.model,
            self.optimizer,
            step=step,
            scheduler=self.scheduler,
            loader=self.batches,
            samples=40,
            **{"extra": {"best": (1, 0.5)}, **options},
        )

    def load(self, folder: Any, loader: bool = True) -> sdp.Restored:
        return sdp.load_checkpoint(
            folder,
            self.model,
            self.optimizer,
            scheduler=self.scheduler,
            loader=self.batches if loader else None,
        )

    def state(self) -> dict[str, Any]:
        """The full state; collective."""
        if isinstance(self.model, sdp.SDPModule):
            model, optimizer = self.model.full_state_dict(), self.model.full_optimizer_state_dict(self.optimizer)
        else:
            names = [name for name, _ in self.model.named_parameters()]
            found = self.optimizer.state_dict()
            model = self.model.state_dict()
            groups = [{**group, "params": [names[at] for at in group["params"]]} for group in found["param_groups"]]
            optimizer = {"state": {names[at]: one for at, one in found["state"].items()}, "param_groups": groups}
        result = {f"model {key}": value.clone() for key, value in model.items()}
        for name, entries in optimizer["state"].items():
            result.update({f"optimizer {name} {key}": value.clone() for key, value in entries.items()})
        result["groups"] = optimizer["param_groups"]
        result["scheduler"] = self.scheduler.state_dict()
        return result


def same(one: dict[str, Any], other: dict[str, Any], leave_out: tuple[str, ...] = ()) -> None:
    """Both states are equal bit by bit."""
    assert set(one) == set(other)
    for key, value in one.items():
        if key in leave_out:
            continue
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[key].dtype and torch.equal(value, other[key]), key
        else:
            assert value == other[key], key
