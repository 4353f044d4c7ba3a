"""Moves pieces of full tensors between workers: makes owners equal, and assembles full tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.comm.groups import Groups, explained

CHUNK_BYTES = 64 * 2**20
"""Size in bytes of the flat buffers in which state travels: enough to hide latency, small beside a model."""


@torch.no_grad()
def hand_out(
    source: int,
    values: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    holdings: Holdings,
    groups: Groups,
    changed: set[str],
) -> None:
    """Gives the first owners the values of one worker, of which it needs no piece twice. Collective.

    Args:
        source: The worker that has all values.
        values: The full tensors by name, on all workers the same names and dtypes; only those of ``source`` are read.
        tensors: This worker's slices.
        holdings: Where they lie in the full tensors.
        groups: The workers' process groups.
        changed: Takes up the names of tensors that had other values on this worker.
    """
    pieces = [
        piece
        for name in values
        for piece in holdings.plan.pieces(name)
        if piece.owners and piece.numel and piece.owners[0] != source
    ]
    pieces.sort(key=lambda piece: piece.owners[0])
    sizes = [
        (piece.numel * values[piece.name].element_size(), (piece.owners[0], values[piece.name].dtype))
        for piece in pieces
    ]
    for batch in batches(sizes):
        part = pieces[batch]
        target, dtype = part[0].owners[0], values[part[0].name].dtype
        if groups.rank == source:
            read = [Region(piece.index).read(values[piece.name]).reshape(-1) for piece in part]
            flat = torch.cat([one.to(groups.device) for one in read])
        elif groups.rank == target:
            flat = torch.empty(sum(piece.numel for piece in part), dtype=dtype, device=groups.device)
        else:
            continue
        with explained((source, target), "initial values", groups.rank):
            _send(flat, source, target, groups)
        if groups.rank == target:
            regions = [(holdings.region(piece), tensors[piece.name]) for piece in part]
            changed |= _differing(flat, [piece.name for piece in part], regions)
            _unpack(flat, regions)


@dataclass(frozen=True)
class Request:
    """A full tensor to assemble.

    Attributes:
        key: What the tensor is called in the workers' slices and in the result.
        name: The tensor of the plan whose shape and owners it has.
        dtype: Its dtype.
    """

    key: str
    name: str
    dtype: torch.dtype


@torch.no_grad()
def assemble(
    requests: Sequence[Request],
    tensors: Mapping[str, Tensor],
    holdings: Holdings,
    groups: Groups | None,
    *,
    wanted: Sequence[int] | None,
    device: torch.device,
) -> dict[str, Tensor]:
    """Assembles full tensors from the workers' slices, each piece from its first owner. Collective.

    Args:
        requests: What to assemble; the same on all workers.
        tensors: This worker's slices by the requests' keys.
        holdings: Where they lie in the full tensors.
        groups: The workers' process groups; None if this worker owns everything.
        wanted: The worker that gets the result, as a sequence of one; None for all workers.
        device: The device of the result.

    Returns:
        The full tensors by key; an empty dictionary on workers that do not get the result. Elements without owners are
        zero.
    """
    rank = groups.rank if groups is not None else holdings.rank
    receives = wanted is None or rank in wanted
    result = {
        request.key: torch.zeros(holdings.plan.state[request.name].shape, dtype=request.dtype, device=device)
        for request in (requests if receives else ())
    }
    pieces = [
        (request, piece)
        for request in requests
        for piece in holdings.plan.pieces(request.name)
        if piece.owners and piece.numel
    ]
    # By source, so that batches are long. Sorting is stable, so all workers get the same order.
    pieces.sort(key=lambda entry: entry[1].owners[0])
    sizes = [(piece.numel * request.dtype.itemsize, (piece.owners[0], request.dtype)) for request, piece in pieces]
    for batch in batches(sizes):
        part = pieces[batch]
        source, dtype = part[0][1].owners[0], part[0][0].dtype
        if rank == source:
            mine = [holdings.region(piece).read(tensors[request.key]) for request, piece in part]
            flat = _flat(mine, groups)
        elif receives or wanted is None:
            assert groups is not None
            flat = torch.empty(sum(piece.numel for _, piece in part), dtype=dtype, device=groups.device)
        else:
            continue
        if groups is not None and groups.workers > 1:
            with explained(tuple(range(groups.workers)), "full state", rank):
                if wanted is None:
                    groups.broadcast(flat, source)
                elif source not in wanted:
                    _send(flat, source, wanted[0], groups)
        if receives:
            _unpack(flat, [(Region(piece.index), result[request.key]) for request, piece in part])
    return result


def _send(flat: Tensor, source: int, target: int, groups: Groups) -> None:
    """Sends ``flat`` from one worker to another; both call it."""
    if groups.rank == source:
        dist.send(flat.view(torch.uint8), dst=groups.global_rank(target), group=groups.group)
    else:
        dist.recv(flat.view(torch.uint8), src=groups.global_rank(source), group=groups.group)


def _flat(parts: Sequence[Tensor], groups: Groups | None) -> Tensor:
    flat = torch.cat([part.detach().reshape(-1) for part in parts])
    return flat if groups is None else flat.to(groups.wire(flat.device))


def _differing(flat: Tensor, names: Sequence[str], regions: Sequence[tuple[Region, Tensor]]) -> set[str]:
    """Returns the names of tensors whose bytes in their region are not those in ``flat``."""
    result, offset = set(), 0
    for name, (region, tensor) in zip(names, regions, strict=True):
        mine, theirs = region.read(tensor.detach()).reshape(-1), flat[offset : offset + region.numel]
        offset += region.numel
        if not torch.equal(mine.contiguous().view(torch.uint8), theirs.to(mine.device).view(torch.uint8)):
            result.add(name)
    return result


def _unpack(flat: Tensor, regions: Iterable[tuple[Region, Tensor]]) -> None:
    offset = 0
    for region, tensor in regions:
        region.write(tensor.detach(), flat[offset : offset + region.numel])
        offset += region.numel


def batches(sizes: Iterable[tuple[int, object]], limit: int = CHUNK_BYTES) -> Iterator[slice]:
    """Yields runs of a sequence of (bytes, key): each of one key, with at most ``limit`` bytes or one larger member."""
    start, position, held, current = 0, -1, 0, None
    for position, (nbytes, key) in enumerate(sizes):
        if position > start and (held + nbytes > limit or key != current):
            yield slice(start, position)
            start, held = position, 0
        held, current = held + nbytes, key
    if position >= start:
        yield slice(start, position + 1)
