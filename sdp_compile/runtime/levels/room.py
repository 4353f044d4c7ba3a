"""Memory for tensors that travel together, laid out as they travel: what is packed there is sent without a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.runtime.levels.rows import Rows, chunks_of, rows


@dataclass
class Room:
    """Tensors that their owners split evenly.

    Attributes:
        memory: The tensors that hold everything.
        chunks: For each tensor the chunk of each of its owners, in their order.
        flats: The tensors, if each of them lies in one run of memory.
        outgoing: The chunks of the peers as one all-to-all sends them, in bytes; None if they do not lie so.
        spare: As much memory as ``outgoing``, free between the two all-to-alls of a round trip.
    """

    memory: Sequence[Tensor]
    chunks: Sequence[Mapping[int, Tensor]]
    flats: Sequence[Tensor] = ()
    outgoing: Tensor | None = None
    spare: Tensor | None = None

    @property
    def stretches(self) -> list[Sequence[Tensor]]:
        """For each tensor the runs of memory in which it lies, in order."""
        if self.flats:
            return [(flat,) for flat in self.flats]
        return [tuple(chunks.values()) for chunks in self.chunks]


@dataclass(frozen=True)
class Arrangement:
    """How tensors lie in a room of bytes.

    Attributes:
        rows: Where the chunks lie; or the tensors, each as the row that this worker keeps.
        owners: For each tensor the owners of its chunks.
        is_split: Whether the rows are chunks.
    """

    rows: Rows
    owners: tuple[OwnerSet, ...]
    is_split: bool

    def room(self, device: torch.device) -> Room:
        """Returns a new room."""
        return self.over(torch.empty(self.rows.nbytes + self.rows.kept_nbytes, dtype=torch.uint8, device=device))

    def over(self, buffer: Tensor) -> Room:
        """Returns the room that lies in a buffer, such as the copy of another one's on another device."""
        outgoing = buffer[: self.rows.nbytes]
        kept = self.rows.kept_views(buffer[self.rows.nbytes :])
        if not self.is_split:
            return Room([buffer], _chunks(kept, self.owners), kept)
        came = self.rows.views(outgoing)
        chunks = [
            {member: came.get((number, member), own) for member in members}
            for number, (own, members) in enumerate(zip(kept, self.owners, strict=True))
        ]
        return Room([buffer], chunks, outgoing=outgoing)


def room_of(flats: Sequence[Tensor], owners: Sequence[OwnerSet]) -> Room:
    """Returns a room of tensors that lie anywhere, each with its owners' chunks one after the other."""
    return Room(flats, _chunks(flats, owners), flats)


def arranged_by_peers(
    members: OwnerSet, rank: int, owners: Sequence[OwnerSet], lengths: Sequence[int], dtypes: Sequence[torch.dtype]
) -> Arrangement:
    """Arranges chunks as the members of a group exchange them.

    Args:
        members: The workers of the group.
        rank: This worker.
        owners: For each tensor its owners among the members.
        lengths: The elements of each tensor.
        dtypes: The dtype of each tensor.
    """
    chunks = tuple(length // len(those) for length, those in zip(lengths, owners, strict=True))
    return Arrangement(rows(members, rank, tuple(owners), chunks, tuple(dtypes)), tuple(owners), True)


def arranged_in_order(owners: Sequence[OwnerSet], lengths: Sequence[int], dtypes: Sequence[torch.dtype]) -> Arrangement:
    """Arranges tensors one after the other; the arguments are those of `arranged_by_peers`."""
    alone = ((0,),) * len(lengths)
    return Arrangement(rows((0,), 0, alone, tuple(lengths), tuple(dtypes)), tuple(owners), False)


def _chunks(flats: Sequence[Tensor], owners: Sequence[OwnerSet]) -> list[Mapping[int, Tensor]]:
    return [chunks_of(flat, those) for flat, those in zip(flats, owners, strict=True)]
