"""Gives all owners of a unit the same bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.owners import OwnerSet, is_member
from sdp_compile.planning.holdings import Holdings
from sdp_compile.runtime.comm.agreement import maxima
from sdp_compile.runtime.comm.transfer import CHUNK_BYTES
from sdp_compile.runtime.levels.route import Errand, Route, padded


@torch.no_grad()
def equalise(
    names: Iterable[tuple[str, Tensor]],
    holdings: Holdings,
    route: Route,
    changed: set[str] | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> None:
    """Gives all owners of a piece the values of its first owner. Collective.

    The bytes travel as the sum over all owners, of whom all but the first send zeros.

    Args:
        names: (full-model name, this worker's tensor); a name may come with several tensors of the same slice, such as
            optimizer state. The order must be the same on all owners of a piece.
        holdings: Which tensors this worker holds.
        route: The way to the other owners.
        changed: Takes up the names of tensors that had other values on this worker.
        chunk_bytes: About how many bytes travel at a time.
    """
    if route.groups.peers_are_fake:  # they leave the values as they are
        return
    by_owners: dict[OwnerSet, list[tuple[Piece, Tensor]]] = {}
    for name, tensor in names:
        for piece in holdings.plan.pieces(name):
            if len(piece.owners) > 1 and piece.numel and is_member(holdings.rank, piece.owners):
                by_owners.setdefault(piece.owners, []).append((piece, tensor))
    total = sum(_nbytes(part) for parts in by_owners.values() for part in parts)
    rounds = int(maxima([float(-(-total // chunk_bytes))], "the size of what owners send each other", route.groups)[0])
    device = next((tensor.device for parts in by_owners.values() for _, tensor in parts), route.groups.idle_device)
    wire = route.groups.wire(device)
    lots = {owners: list(_split(by_owners[owners], rounds)) for owners in sorted(by_owners)}
    for number in range(rounds):
        errand = Errand([owners for owners in lots if lots[owners][number]], "the first owners' values", "values")
        flats = [
            padded(_bytes(lots[owners][number], holdings, owners[0] == holdings.rank).to(wire), owners)
            for owners in errand.owners
        ]
        for owners, flat in zip(errand.owners, route.run(route.round_trip(errand), flats), strict=True):
            if owners[0] != holdings.rank:
                _write(flat, lots[owners][number], holdings, changed)


def _nbytes(part: tuple[Piece, Tensor]) -> int:
    piece, tensor = part
    return piece.numel * tensor.element_size()


def _split(parts: Sequence[tuple[Piece, Tensor]], rounds: int) -> Iterator[list[tuple[Piece, Tensor]]]:
    """Deals parts to rounds, about equally many bytes to each, in the same way on all owners."""
    # Large elements first, so that those of every size begin at a multiple of it.
    ordered = sorted(parts, key=lambda part: -part[1].element_size())
    total, before = sum(map(_nbytes, ordered)), 0
    result: list[list[tuple[Piece, Tensor]]] = [[] for _ in range(rounds)]
    for part in ordered:
        result[before * rounds // total].append(part)
        before += _nbytes(part)
    yield from result


def _bytes(parts: Sequence[tuple[Piece, Tensor]], holdings: Holdings, has_values: bool) -> Tensor:
    if not has_values:
        return torch.zeros(sum(map(_nbytes, parts)), dtype=torch.uint8, device=parts[0][1].device)
    device = parts[0][1].device
    read = [holdings.region(piece).read(tensor.detach()).reshape(-1) for piece, tensor in parts]
    return torch.cat([one.contiguous().view(torch.uint8).to(device) for one in read])


def _write(flat: Tensor, parts: Sequence[tuple[Piece, Tensor]], holdings: Holdings, changed: set[str] | None) -> None:
    offset = 0
    for piece, tensor in parts:
        nbytes, region = _nbytes((piece, tensor)), holdings.region(piece)
        values = flat[offset : offset + nbytes].to(tensor.device)
        offset += nbytes
        if changed is not None:
            mine = region.read(tensor.detach()).reshape(-1).contiguous().view(torch.uint8)
            if not torch.equal(mine, values):
                changed.add(piece.name)
        region.write(tensor.detach(), values.view(tensor.dtype))
