"""A small model with residual blocks and a BatchNorm (for buffers), and factories that fail in various ways."""

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
    """Returns the model and its inputs, as the command line expects."""
    return Residual(), (torch.randn(4, 16),)


def wide() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Returns a model that computes for long enough to hide what it sends."""
    return Residual(256, 1024, 6), (torch.randn(4, 256),)


def hangs() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Never returns on worker 1."""
    if os.environ["RANK"] == "1":
        time.sleep(1000)
    return residual()


def dies() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Kills the process on worker 1, as the system does when it runs out of memory."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return residual()


def fails() -> tuple[nn.Module, tuple[Tensor, ...]]:
    if os.environ["RANK"] == "1":
        raise ValueError("worker 1 has no such data")
    return residual()
