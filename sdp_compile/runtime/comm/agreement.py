"""What all workers decide together at the end of a backward: one small all-reduce of a few flags."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist

from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.waiting.patience import complete


@dataclass(frozen=True)
class Flags:
    """One worker's view of a backward, or the maximum over all workers.

    Attributes:
        launch_was_incomplete: Whether a reduction was launched on a gradient that was not complete.
        no_graph_asked: Whether no compiled graph asked to launch a reduction.
        device: A code for the kinds of devices that the worker's parameters lie on.
        minus_device: Its negative: the two maxima differ in size if any two workers have different devices.
    """

    launch_was_incomplete: bool
    no_graph_asked: bool
    device: float
    minus_device: float

    @property
    def unequal_devices(self) -> bool:
        """Whether any two workers compute on different kinds of devices."""
        return self.device != -self.minus_device


def device_code(kinds: set[str]) -> float:
    """Returns a number that stands for a set of device types."""
    return float(sum(map(ord, "".join(sorted(kinds)))))


def agree(flags: Flags, groups: Groups) -> Flags:
    """Returns the maximum of each flag over all workers. Collective."""
    largest = maxima([float(value) for value in astuple(flags)], "the flags at the end of backward", groups)
    return Flags(bool(largest[0]), bool(largest[1]), largest[2], largest[3])


def maxima(values: list[float], what: str, groups: Groups) -> list[float]:
    """Returns the maximum of each value over all workers; ``what`` names the collective in errors. Collective."""
    if groups.workers == 1:
        return values
    everyone = torch.tensor(values, dtype=torch.float32)  # on the host, which waits for its peers, but for no device
    with explained(tuple(range(groups.workers)), what, groups.rank):
        complete(dist.all_reduce(everyone, dist.ReduceOp.MAX, groups.control, async_op=True), everyone)
    groups.traffic.add("control", "all_reduce", everyone.nbytes, groups.workers)
    largest: list[float] = everyone.tolist()
    return largest


def known_to_any(mine: Set[str], names: Sequence[str], groups: Groups) -> tuple[str, ...]:
    """Returns those of ``names``, the same on all workers, that any worker has in ``mine``. Collective."""
    if groups.workers == 1 or not names:
        return tuple(name for name in names if name in mine)
    flags = torch.tensor([name in mine for name in names], dtype=torch.uint8, device=groups.device)
    with explained(tuple(range(groups.workers)), "differences between initial values", groups.rank):
        complete(dist.all_reduce(flags, dist.ReduceOp.MAX, groups.group, async_op=True), flags)
    return tuple(name for name, flag in zip(names, flags.tolist(), strict=True) if flag)
