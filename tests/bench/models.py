"""A model that is quick to bench: residual blocks, a BatchNorm for buffers, and its inputs."""

import os
import signal
import time

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(x)))
        return out


class Residual(nn.Module):
    def __init__(self, width: int = 16, hidden: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(blocks))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def residual() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A factory as the command line takes it."""
    return Residual(), (torch.randn(4, 16),)


def hangs() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """On worker 1 it never comes back."""
    if os.environ["RANK"] == "1":
        time.sleep(1000)
    return residual()


def dies() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """On worker 1 it takes the process with it, as the system does where memory is short."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return residual()


def fails() -> tuple[nn.Module, tuple[Tensor, ...]]:
    if os.environ["RANK"] == "1":
        raise ValueError("worker 1 has no such data")
    return residual()
