"""The peak memory of each phase of a step: the allocator's on an accelerator, distinct storages on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from sdp_compile.bench.contestant import Contestant
from sdp_compile.bench.one_of.storages import LiveStorages

PHASES = ("forward", "backward", "update")


class Meter(Protocol):
    """Reads the memory of a device in bytes."""

    def restart(self) -> None:
        """Begins a new peak."""

    @property
    def peak(self) -> int:
        """The most since the last restart."""


class Allocator:
    """The memory that an accelerator's allocator has handed out."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def restart(self) -> None:
        """Begins a new peak."""
        torch.accelerator.synchronize(self._device)
        torch.accelerator.reset_peak_memory_stats(self._device)

    @property
    def peak(self) -> int:
        """The most since the last restart."""
        return int(torch.accelerator.max_memory_allocated(self._device))


@contextmanager
def meter_of(device: torch.device) -> Iterator[Meter]:
    """Yields the meter of a device."""
    if device.type != "cpu":
        yield Allocator(device)
        return
    with LiveStorages(device.type) as storages:
        yield storages


def phases(contestant: Contestant) -> dict[str, Callable[[], Any]]:
    """Returns the phases of a training step, to be called in this order."""
    losses: list[torch.Tensor] = []

    def forward() -> None:
        contestant.optimizer.zero_grad(set_to_none=True)
        losses.append(contestant.work.loss(contestant.call))

    return dict(zip(PHASES, (forward, lambda: losses.pop().backward(), contestant.optimizer.step), strict=True))


def peaks(contestant: Contestant, device: torch.device) -> dict[str, int]:
    """Runs a step. Returns the most bytes in each of its phases."""
    found = {}
    with meter_of(device) as meter:
        for name, run in phases(contestant).items():
            meter.restart()
            run()
            found[name] = meter.peak
    return found
