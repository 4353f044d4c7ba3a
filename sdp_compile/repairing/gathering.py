"""Gives each owner the copies of all owners of some parts, in all-to-alls of bounded size and one order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.comm.transfer import CHUNK_BYTES
from sdp_compile.runtime.waiting.patience import complete


@dataclass(frozen=True)
class Differing:
    """A part of which the owners hold different bits; the same on all workers.

    Attributes:
        identifier: The part.
        label: What it is called.
        parameter: The parameter that it belongs to.
        state: The name of the optimizer's state; empty for the value.
        owners: Its owners, ascending.
        nbytes: Its size.
    """

    identifier: str
    label: str
    parameter: str
    state: str
    owners: tuple[int, ...]
    nbytes: int


def gathered(
    parts: Sequence[Differing], own: Mapping[str, Tensor], groups: Groups, device: torch.device
) -> Iterator[tuple[Differing, Tensor]]:
    """Yields those parts that this worker owns, with one row of bytes per owner. Collective.

    Args:
        parts: The parts, on all workers the same.
        own: What this worker holds, by identifier.
        groups: The workers' process groups.
        device: The device of this worker's tensors.
    """
    for lot in _lots(parts):
        mine = [part for part in lot if groups.rank in part.owners]
        raw = {
            part.identifier: own[part.identifier].reshape(-1).contiguous().view(torch.uint8).to(groups.wire(device))
            for part in mine
        }
        arrived = _exchanged(lot, raw, groups, groups.wire(device))
        for part in mine:
            rows = [raw[part.identifier] if owner == groups.rank else arrived[owner].pop(0) for owner in part.owners]
            yield part, torch.stack(rows)


def _lots(parts: Sequence[Differing]) -> Iterator[list[Differing]]:
    """Yields the parts in order, in lots of bounded size."""
    lot: list[Differing] = []
    size = 0
    for part in parts:
        lot.append(part)
        size += part.nbytes * len(part.owners)
        if size >= CHUNK_BYTES:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot


def _exchanged(
    lot: Sequence[Differing], raw: Mapping[str, Tensor], groups: Groups, wire: torch.device
) -> list[list[Tensor]]:
    """Returns the bytes that each worker has sent to this one, in the order of the lot."""
    wanted: list[list[Differing]] = [
        [part for part in lot if part.identifier in raw and worker in part.owners and worker != groups.rank]
        for worker in range(groups.workers)
    ]
    lengths = [sum(part.nbytes for part in parts) for parts in wanted]  # what goes there comes from there
    sent = [raw[part.identifier] for parts in wanted for part in parts]
    flat = torch.cat([*sent, torch.empty(0, dtype=torch.uint8, device=wire)])
    received = torch.empty_like(flat)
    with explained(tuple(range(groups.workers)), "what owners hold differently", groups.rank):
        complete(dist.all_to_all_single(received, flat, lengths, lengths, groups.group, async_op=True), flat)
    groups.traffic.add_sent("repair", flat.nbytes)
    return [
        list(some.split([part.nbytes for part in parts])) if parts else []
        for some, parts in zip(received.split(lengths), wanted, strict=True)
    ]
