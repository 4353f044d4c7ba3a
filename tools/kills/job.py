"""What the workers of a trial train, and a digest of all that training depends on."""

from __future__ import annotations

import gc
import hashlib
import importlib
import json
import os
import random
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

import sdp_compile as sdp
from sdp_compile import compiler
from sdp_compile.capture import capture
from sdp_compile.checkpoint.random_states import random_states
from sdp_compile.structure.analysis import Analysis, analyse
from tools.kills.trial import Kind

_WIDTH = 6


class Branch(nn.Module):
    """A branch with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(_WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Returns what is added to ``x``."""
        return self.down(torch.relu(self.norm(self.up(x))))  # type: ignore[no-any-return]


class Net(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch() for _ in range(4))
        self.head = nn.Linear(_WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Returns a prediction."""
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)  # type: ignore[no-any-return]


class Batches:
    """This worker's source of data, with a position."""

    def __init__(self, rank: int) -> None:
        self.rank, self.position = rank, 0

    def __next__(self) -> Tensor:
        self.position += 1
        return torch.randn(5, _WIDTH, generator=torch.Generator().manual_seed(1000 * self.rank + self.position))

    def state_dict(self) -> dict[str, int]:
        """Returns the position."""
        return {"rank": self.rank, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Goes to a position of this worker."""
        if state["rank"] != self.rank:
            raise AssertionError("another worker's position")
        self.position = state["position"]


def captured() -> Analysis:
    """Captures and analyses the model, and imports all, which forked workers need not do again. Starts no threads."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    analysis = analyse(capture(Net(), (torch.zeros(5, _WIDTH),)))
    theirs, mine = os.pipe()
    if not (child := os.fork()):  # backward starts threads, after which a process cannot be forked
        _tell_modules(analysis, mine)
    os.close(mine)
    with os.fdopen(theirs) as pipe:
        names = json.load(pipe)
    os.waitpid(child, 0)
    for name in names:
        if not name.startswith(("torch._inductor", "__m")):
            with suppress(Exception):  # what no one can import by its name
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # forked processes neither look through all of this again nor copy it
    return analysis


def _tell_modules(analysis: Analysis, pipe: int) -> None:
    """Does all that workers do, writes which modules that has imported, and ends the process."""
    names: list[str] = []
    try:
        for sharded in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                job = Job(Kind("neuron", sharded), 0, analysis, workers=1)
                job.train()
                job.save(Path(folder))
                job.load(Path(folder))
                job.digest()
        names = list(sys.modules)
    finally:
        with os.fdopen(pipe, "w") as file:
            json.dump(names, file)
        os._exit(0)


class Job:
    """One worker's training.

    Args:
        kind: What is trained.
        rank: This worker.
        analysis: What `captured` returned.
        seed: Decides the initial weights.
        workers: The number of workers; by default that of the process group.
    """

    def __init__(self, kind: Kind, rank: int, analysis: Analysis, seed: int = 0, workers: int | None = None) -> None:
        level, _, masking = kind.level.partition("-")
        policy = sdp.NeuronPolicy if level == "neuron" else sdp.BlockPolicy
        torch.manual_seed(seed)
        original = Net()
        with (
            patch.object(compiler, "capture", lambda *_: analysis.capture),
            patch.object(compiler, "analyse", lambda _: analysis),
        ):
            self.model: Any = sdp.compile(
                original,
                policy(coverage=0.5, masking=masking or "forward"),
                (torch.zeros(5, _WIDTH),),
                workers=workers,
            )
        options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1}
        self.optimizer: torch.optim.Optimizer
        if kind.sharded:
            self.optimizer = sdp.ShardedOptimizer(self.model, torch.optim.AdamW, **options)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), **options)
        self.scheduler = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 5], gamma=0.5)
        self.batches, self.step = Batches(rank), 0
        torch.manual_seed(100 * seed + rank)
        random.seed(100 * seed + rank)
        np.random.seed(100 * seed + rank)

    def train(self) -> None:
        """Does one step, which depends on all random numbers."""
        noise = torch.rand(()) + random.random() + np.random.random()
        loss = self.model(next(self.batches)).square().mean() * (1 + 0.1 * noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1

    def save(self, folder: Path, **options: Any) -> Any:
        """Saves a checkpoint. Collective."""
        return sdp.save_checkpoint(
            folder,
            self.model,
            self.optimizer,
            step=self.step,
            scheduler=self.scheduler,
            loader=self.batches,
            samples=20 * self.step,
            **options,
        )

    def load(self, path: Path) -> None:
        """Loads a checkpoint, or the newest in a folder. Collective."""
        restored = sdp.load_checkpoint(path, self.model, self.optimizer, scheduler=self.scheduler, loader=self.batches)
        self.step = restored.step

    def digest(self) -> str:
        """Returns a digest of all that this worker's next steps depend on."""
        held = [shard for group in self.optimizer.param_groups for shard in group["params"]]
        if isinstance(self.optimizer, sdp.ShardedOptimizer):
            held = [shard.parameter for shards in self.optimizer.layout.shards.values() for shard in shards]
        state = {
            "model": dict(self.model.state_dict()),
            "optimizer": [self.optimizer.state.get(parameter, {}) for parameter in held],
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "scheduler": self.scheduler.state_dict(),
            "batches": self.batches.state_dict(),
            "random": random_states(),
        }
        return digest_of(state)

    def full_digest(self) -> str:
        """Returns a digest of the full model, on worker 0. Collective."""
        return digest_of(dict(self.model.full_state_dict()))


def digest_of(state: Any) -> str:
    """Returns a digest of nested values; tensors count by their bits."""
    return hashlib.sha256(json.dumps(_plain(state), sort_keys=True).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, (Tensor, np.ndarray)):
        tensor = torch.as_tensor(value).detach().contiguous()
        content = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        return [str(tensor.dtype), list(tensor.shape), content]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value)
