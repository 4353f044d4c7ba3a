"""Backward masking: after each optimizer step the workers pass on the values that they updated."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdp_compile.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.elements import Piece
from sdp_compile.plan import Plan
from sdp_compile.runtime.groups import Groups, explained
from sdp_compile.runtime.pieces import Local, Region, local_tensors


@dataclass
class Round:
    """One gather: what each worker contributes, of one dtype; all contributions are padded to the longest."""

    dtype: torch.dtype
    parts: tuple[list[Piece], ...]
    sizes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = [sum(piece.numel for piece in part) for part in self.parts]


class Refresh:
    """Brings the values of updated parameters to the workers that compute with them without owning them.

    One world all-gather per bucket and step. The owners of a piece hold the same bits, so any of them can contribute
    it: the least loaded one does. All workers make the same schedule from the plan. ``refresh`` is collective.
    """

    def __init__(
        self, module: nn.Module, local: Local, groups: Groups, bucket_bytes: int = DEFAULT_BUCKET_BYTES
    ) -> None:
        self._module = weakref.ref(module)
        self._groups = groups
        self._rounds = [
            (
                gather,
                [(piece.name, local.region(piece)) for piece in gather.parts[local.rank]],
                [list(_targets(part, local)) for part in gather.parts],
            )
            for gather in schedule(local.plan, bucket_bytes)
        ]

    @torch.no_grad()
    def refresh(self) -> None:
        """Makes every value that this worker computes with what it is on its owners. Collective."""
        module = self._module()
        if module is None or not self._rounds:
            return
        tensors, groups, everyone = local_tensors(module), self._groups, tuple(range(self._groups.workers))
        device = next(iter(tensors.values())).device
        for gather, mine, theirs in self._rounds:
            dtype = next((tensors[name].dtype for name, _ in mine), None) or _dtype_now(theirs, tensors, gather.dtype)
            longest = max(gather.sizes)
            gathered = torch.empty(longest * groups.workers, dtype=dtype, device=groups.wire(device))
            own = gathered.narrow(0, groups.rank * longest, longest)
            _pack(own, [(tensors[name], region) for name, region in mine])
            with explained(everyone, "the refresh of parameters", groups.rank):
                dist.all_gather_into_tensor(gathered, own.clone(), group=groups.group)
            groups.traffic.add("refresh", "all_gather", gathered.nbytes, groups.workers)
            for worker, targets in enumerate(theirs):
                _unpack(gathered.narrow(0, worker * longest, longest), targets, tensors)


def _targets(part: Sequence[Piece], local: Local) -> Iterator[tuple[str, Region | None, int]]:
    """(tensor, where in it, length) of each piece of a contribution; no place for what this worker owns itself."""
    for piece in part:
        if local.rank in piece.owners:
            yield piece.name, None, piece.numel
        else:
            name, region = local.not_owned(piece)
            yield name, region, piece.numel


def _pack(flat: Tensor, parts: Iterable[tuple[Tensor, Region]]) -> None:
    offset = 0
    for tensor, region in parts:
        flat[offset : offset + region.numel].view(region.shape).copy_(region.read(tensor))
        offset += region.numel


def _unpack(flat: Tensor, targets: Iterable[tuple[str, Region | None, int]], tensors: dict[str, Tensor]) -> None:
    offset = 0
    for name, region, numel in targets:
        if region is not None:
            region.write(tensors[name].detach(), flat[offset : offset + numel])
        offset += numel


def _dtype_now(
    theirs: Sequence[Sequence[tuple[str, Region | None, int]]], tensors: dict[str, Tensor], planned: torch.dtype
) -> torch.dtype:
    """The dtype that a round's tensors have by now; the module may have been converted."""
    return next((tensors[name].dtype for targets in theirs for name, _, _ in targets), planned)


def schedule(plan: Plan, bucket_bytes: int) -> Iterator[Round]:
    """The rounds of one refresh: pieces dealt out to their least loaded owner, largest first, in lots of equal size."""
    by_dtype: dict[torch.dtype, list[Piece]] = {}
    for piece in plan.refreshed():
        by_dtype.setdefault(plan.state[piece.name].dtype, []).append(piece)
    for dtype, pieces in by_dtype.items():
        quota = max(1, bucket_bytes // dtype.itemsize)
        loads = [0] * plan.workers
        dealt: list[list[Piece]] = [[] for _ in range(plan.workers)]
        for piece in sorted(pieces, key=lambda piece: -piece.numel):
            owner = min(piece.owners, key=loads.__getitem__)
            dealt[owner].append(piece)
            loads[owner] += piece.numel
        lots = [list(_lots(part, quota)) for part in dealt]
        for number in range(max(map(len, lots), default=0)):
            yield Round(dtype, tuple(lot[number] if number < len(lot) else [] for lot in lots))


def _lots(part: Sequence[Piece], quota: int) -> Iterator[list[Piece]]:
    """Runs of pieces of at most ``quota`` elements, or one larger piece."""
    lot: list[Piece] = []
    held = 0
    for piece in part:
        if lot and held + piece.numel > quota:
            yield lot
            lot, held = [], 0
        lot.append(piece)
        held += piece.numel
    if lot:
        yield lot
