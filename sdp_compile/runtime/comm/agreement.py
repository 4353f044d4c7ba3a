"""What all workers must decide alike at the end of a backward: one small all-reduce of a few flags."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
import torch.distributed as dist

from sdp_compile.runtime.comm.groups import Groups, explained


@dataclass(frozen=True)
class Flags:
    """One worker's view of a backward, or the largest of everyone's.

    ``stale``: a reduction was launched on a gradient that was not complete. ``eager``: no compiled graph asked to
    launch any. ``device`` and ``minus_device`` are a code of the kinds of devices that this worker's parameters lie on
    and its negative, so that their maxima differ in size where any two workers do.
    """

    stale: bool
    eager: bool
    device: float
    minus_device: float

    @property
    def unequal_devices(self) -> bool:
        return self.device != -self.minus_device


def device_code(kinds: set[str]) -> float:
    """A number for a set of kinds of devices."""
    return float(sum(map(ord, "".join(sorted(kinds)))))


def agree(flags: Flags, groups: Groups) -> Flags:
    """The maximum of each flag over all workers. Collective."""
    largest = maxima([float(value) for value in astuple(flags)], "the flags at the end of backward", groups)
    return Flags(bool(largest[0]), bool(largest[1]), largest[2], largest[3])


def maxima(values: list[float], what: str, groups: Groups) -> list[float]:
    """The maximum of each value over all workers. Collective."""
    everyone = torch.tensor(values, dtype=torch.float32, device=groups.device)
    with explained(tuple(range(groups.workers)), what, groups.rank):
        dist.all_reduce(everyone, op=dist.ReduceOp.MAX, group=groups.group)
    groups.traffic.add("control", "all_reduce", everyone.nbytes, groups.workers)
    largest: list[float] = everyone.tolist()
    return largest
