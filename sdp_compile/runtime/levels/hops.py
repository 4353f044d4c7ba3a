"""Single steps of a reduction: collectives in one group of one level.

Each takes flat tensors, one for each owner set, and returns as many. The members of the group that own a tensor hold
equally long ones, and split them evenly. Groups whose members own the same use the reduce-scatter and all-gather of the
communication library, except with Gloo. Everywhere else one all-to-all serves all owner sets of the group at once.
Measured with Gloo (torch 2.14, 24 MiB, loopback): its own reduce-scatter is an all-reduce underneath, sends twice as
much and takes 1.7 times as long.

Whoever adds parts up does so in the order of the workers, half precision in float32, so that the result does not depend
on timing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.runtime.comm.streams import Begun
from sdp_compile.runtime.comm.traffic import CollectiveKind, Traffic
from sdp_compile.runtime.levels.arithmetic import Copies, Operation
from sdp_compile.runtime.levels.room import Room, room_of
from sdp_compile.runtime.levels.rows import Rows, rows

Works: TypeAlias = Sequence[tuple[dist.Work | None, Tensor]]
"""Collectives, each with a tensor that it reads or writes."""

# torch 2.14 has new names for these two.
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


@dataclass(frozen=True)
class Hop:
    """The collectives of this worker's group of one level.

    Attributes:
        group: The process group.
        members: Its workers, ascending.
        rank: This worker.
        has_library: Whether to use the library's reduce-scatter and all-gather, for members that own the same.
        traffic: Counts what this worker sends.
        device: The device of the tensors, also where this worker has none.
        peers_are_fake: Whether nothing arrives; then the peers' parts are zero.
        is_silent: Whether no member has anything for another.
    """

    group: dist.ProcessGroup
    members: OwnerSet
    rank: int
    has_library: bool
    traffic: Traffic
    device: torch.device
    peers_are_fake: bool = False
    is_silent: bool = False

    def scatter(self, room: Room, owners: Sequence[OwnerSet], operation: Operation, purpose: str, wide: bool) -> Begun:
        """Gives each owner the sum or maximum of its chunk of each tensor.

        Args:
            room: The tensors, each with one equally long chunk per owner in the group. The own chunks may be
                overwritten, the others must stay unchanged.
            owners: For each tensor its owners among the members, ascending.
            operation: What becomes of the chunks.
            purpose: What the traffic is counted as.
            wide: Whether sums of half precision stay in float32.
        """
        if self.has_library:
            return self._by_library("reduce_scatter", room.flats, operation, purpose)
        if room.rows is not None and room.outgoing is not None:
            layout, own, outgoing = room.rows, room.own, room.outgoing
        else:
            chunks = room.chunks
            own = [chunk[self.rank] for chunk in chunks]
            layout = self._rows(own, owners)
            outgoing = self._copied(layout, [chunks[number][peer] for number, peer in layout.order])
        received = room.spare = layout.room(self.device)
        works = self._exchange(layout, outgoing, received, purpose)
        return Begun(works, lambda: layout.combination.of([*own, *layout.sent.views(received)], operation, wide))

    def gather(
        self, chunks: Sequence[Tensor], owners: Sequence[OwnerSet], purpose: str, home: Room | None = None
    ) -> Begun:
        """Joins the chunks of all owners of each tensor, the opposite of `scatter`.

        Args:
            chunks: This worker's chunks.
            owners: For each tensor its owners among the members, ascending.
            purpose: What the traffic is counted as.
            home: Where the joined tensors go, such as the room that was given to `scatter`; new tensors by default.

        Returns:
            The collectives, whose results are the joined tensors, or the memory of their home.
        """
        if self.has_library:
            return self._by_library("all_gather", chunks, "sum", purpose, home)
        room = home or room_of(
            [chunk.new_empty(len(chunk) * len(those)) for chunk, those in zip(chunks, owners, strict=True)], owners
        )
        layout = room.rows or self._rows(chunks, owners)
        spare, room.spare = room.spare, None
        outgoing = self._copied(layout, [chunks[number] for number, _ in layout.order], spare)
        received = layout.room(self.device) if room.outgoing is None else room.outgoing
        works = self._exchange(layout, outgoing, received, purpose)

        def end() -> list[Tensor]:
            copies = Copies()
            if room.outgoing is None:
                for number, chunk in enumerate(chunks):
                    copies.add(room.chunks[number][self.rank], chunk)
                for (number, member), came in layout.by_row(received).items():
                    copies.add(room.chunks[number][member], came)
            else:
                for place, chunk in zip(room.own, chunks, strict=True):
                    copies.add(place, chunk)
            copies.run()
            return list(room.memory)

        return Begun(works, end)

    def all_reduce(self, room: Room, operation: Operation, purpose: str) -> Begun:
        """Gives all members the sum or maximum of each tensor, for members that own the same."""
        return self._by_library("all_reduce", room.flats, operation, purpose)

    def _rows(self, chunks: Sequence[Tensor], owners: Sequence[OwnerSet]) -> Rows:
        lengths, dtypes = tuple(len(chunk) for chunk in chunks), tuple(chunk.dtype for chunk in chunks)
        return rows(self.members, self.rank, tuple(owners), lengths, dtypes)

    def _copied(self, layout: Rows, sent: Sequence[Tensor], into: Tensor | None = None) -> Tensor:
        """Returns a buffer with these rows, in the order of the layout."""
        outgoing = layout.room(self.device) if into is None else into
        if sent:
            torch._foreach_copy_(layout.sent.views(outgoing), list(sent))
        return outgoing

    def _exchange(self, layout: Rows, outgoing: Tensor, received: Tensor, purpose: str) -> Works:
        """Sends the rows of a layout. What comes has the same layout."""
        if self.is_silent:
            return ()
        if self.peers_are_fake:
            received.zero_()
        sizes = list(layout.sizes)
        work = dist.all_to_all_single(received, outgoing, sizes, sizes, group=self.group, async_op=True)
        self.traffic.add_sent(purpose, layout.nbytes)
        return [(work, outgoing)]

    def _by_library(
        self,
        kind: CollectiveKind,
        flats: Sequence[Tensor],
        operation: Operation,
        purpose: str,
        home: Room | None = None,
    ) -> Begun:
        """One collective per dtype for all tensors."""
        members, reduce = len(self.members), _OPERATIONS[operation]
        works: list[tuple[dist.Work | None, Tensor]] = []
        parts: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(flat.dtype for flat in flats):
            numbers = [number for number, flat in enumerate(flats) if flat.dtype == dtype]
            chosen = [flats[number] for number in numbers]
            work: dist.Work | None
            if kind == "reduce_scatter":
                rows = [flat.view(members, -1) for flat in chosen]
                joined = _joined(rows, 1)
                out = joined.new_empty(joined.shape[1])
                work = _reduce_scatter(_real(out), _real(joined.reshape(-1)), reduce, group=self.group, async_op=True)
                pieces = out.split([row.shape[1] for row in rows])
            elif kind == "all_gather":
                joined = _joined(chosen, 0)
                out = joined.new_empty(members, len(joined))
                work = _all_gather(out.view(-1), joined, group=self.group, async_op=True)
                pieces = out.split([len(chunk) for chunk in chosen], dim=1)
            else:
                out = joined = _joined(chosen, 0)
                work = dist.all_reduce(out, reduce, group=self.group, async_op=True)
                pieces = out.split([len(flat) for flat in chosen])
            self.traffic.add(purpose, kind, max(out.nbytes, joined.nbytes), members)
            works.append((work, joined))
            parts.update(zip(numbers, pieces, strict=True))

        def end() -> list[Tensor]:
            if home is None:
                return [parts[number].reshape(-1) for number in range(len(flats))]
            copies = Copies()
            for number, flat in enumerate(home.flats):
                copies.add(flat.view(parts[number].shape), parts[number])
            copies.run()
            return list(home.memory)

        return Begun(works, end)


def _real(tensor: Tensor) -> Tensor:
    """Returns a view of real numbers, as torch makes for complex ones in all collectives but reduce-scatter."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Returns tensors as one: a view where they are vectors that lie side by side."""
    first, *others = tensors
    if not others:
        return first
    stop = first.storage_offset()
    for tensor in tensors:
        is_next = tensor.is_contiguous() and tensor.storage_offset() == stop
        if dim or not is_next or tensor.untyped_storage()._cdata != first.untyped_storage()._cdata:
            return torch.cat(list(tensors), dim)
        stop += tensor.numel()
    return first.as_strided((stop - first.storage_offset(),), (1,))
