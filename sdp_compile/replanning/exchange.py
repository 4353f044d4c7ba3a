"""Sends parts of full tensors to the workers that lack them, in all-to-alls of bounded size and one order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from sdp_compile.planning.moves import Move
from sdp_compile.replanning.stores import Store, as_bytes, part
from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.comm.transfer import CHUNK_BYTES
from sdp_compile.runtime.waiting.patience import complete


@dataclass(frozen=True, eq=False)
class Errand:
    """One full tensor that moves.

    Attributes:
        moves: Its parts; the same on all workers.
        dtype: Its dtype; the same on all workers.
        before: Where it lies on this worker.
        after: Where it will lie.
        stays: Whether this worker's part is the same as before, in the same tensor.
    """

    moves: Sequence[Move]
    dtype: torch.dtype
    before: Store
    after: Store
    stays: bool = False


Part = tuple[Errand, Move]


@torch.no_grad()
def exchange(errands: Iterable[Errand], groups: Groups | None, rank: int, device: torch.device) -> None:
    """Moves tensors to their new places. Collective.

    Args:
        errands: What moves; on all workers in the same order.
        groups: The workers' process groups; None if this worker is alone.
        rank: This worker.
        device: The device of its tensors.
    """
    workers = 1 if groups is None else groups.workers
    for lot in _lots(errands, workers, CHUNK_BYTES):
        _keep(lot, rank)
        if groups is not None and workers > 1:
            _send(lot, groups, device)


def _lots(errands: Iterable[Errand], workers: int, limit: int) -> Iterator[list[Part]]:
    """Yields the parts in order, in lots of which no worker sends or receives more than a limit or one larger part."""
    lot: list[Part] = []
    sent, received = np.zeros(workers, dtype=np.int64), np.zeros(workers, dtype=np.int64)
    for errand in errands:
        for move in errand.moves:
            nbytes = move.numel * errand.dtype.itemsize
            for sender, receiver in move.routes:
                if sender != receiver:
                    sent[sender] += nbytes
                    received[receiver] += nbytes
            lot.append((errand, move))
            if max(sent.max(), received.max()) >= limit:
                yield lot
                lot = []
                sent[:], received[:] = 0, 0
    if lot:
        yield lot


def _keep(lot: Sequence[Part], rank: int) -> None:
    """Copies what this worker has already."""
    for errand, move in lot:
        if (rank, rank) in move.routes and not errand.stays:
            source, read = part(errand.before, move.before, move.index)
            target, written = part(errand.after, move.after, move.index)
            written.write(target, read.read(source))


def _send(lot: Sequence[Part], groups: Groups, device: torch.device) -> None:
    rank, wire = groups.rank, groups.wire(device)
    sends: list[list[torch.Tensor]] = [[] for _ in range(groups.workers)]
    receives: list[list[Part]] = [[] for _ in range(groups.workers)]
    is_empty = True
    for errand, move in lot:
        values = None
        for sender, receiver in move.routes:
            if sender == receiver:
                continue
            is_empty = False
            if sender == rank:
                if values is None:
                    source, region = part(errand.before, move.before, move.index)
                    values = as_bytes(region.read(source).to(errand.dtype), wire)
                sends[receiver].append(values)
            elif receiver == rank:
                receives[sender].append((errand, move))
    if is_empty:  # all workers see the same lot
        return
    flat = torch.cat([one for parts in sends for one in parts] or [torch.empty(0, dtype=torch.uint8, device=wire)])
    counts = [sum(move.numel * errand.dtype.itemsize for errand, move in parts) for parts in receives]
    received = flat.new_zeros(sum(counts))
    if not groups.peers_are_fake:
        with explained(tuple(range(groups.workers)), "values of the new plan", rank):
            lengths = [sum(map(len, parts)) for parts in sends]
            complete(dist.all_to_all_single(received, flat, counts, lengths, groups.group, async_op=True), flat)
    groups.traffic.add_sent("replan", flat.nbytes)
    position = 0
    for errand, move in (one for parts in receives for one in parts):
        nbytes = move.numel * errand.dtype.itemsize
        values = received[position : position + nbytes].clone().view(errand.dtype)  # aligned
        target, region = part(errand.after, move.after, move.index)
        region.write(target, values)
        position += nbytes
