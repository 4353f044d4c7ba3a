"""Memory for tensors that travel together, laid out as they travel: what is packed there is sent without a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.runtime.levels.rows import Rows, chunks_of, rows


class Room:
    """Tensors that their owners split evenly.

    Args:
        memory: The tensors that hold everything.
        owners: For each tensor the owners of its chunks, in their order.
        flats: The tensors, if each of them lies in one run of memory.
        rows: How chunks lie in the memory, if they lie as one all-to-all sends them.

    Attributes:
        memory: The same.
        flats: The same.
        rows: The same.
        outgoing: The chunks of the peers as one all-to-all sends them, in bytes; None if they do not lie so.
        own: This worker's chunks, if they lie so.
        spare: As much memory as ``outgoing``, free between the two all-to-alls of a round trip.
    """

    def __init__(
        self, memory: Sequence[Tensor], owners: Sequence[OwnerSet], flats: Sequence[Tensor], rows: Rows | None = None
    ) -> None:
        self.memory, self.flats, self.rows, self._owners = memory, flats, rows, owners
        self.spare: Tensor | None = None
        self.outgoing: Tensor | None = None
        self.own: Sequence[Tensor] = ()
        if rows is not None:
            (buffer,) = memory
            self.outgoing = buffer[: rows.nbytes]
            self.own = rows.kept.views(buffer[rows.nbytes :])

    @cached_property
    def chunks(self) -> Sequence[Mapping[int, Tensor]]:
        """For each tensor the chunk of each of its owners, in their order."""
        if self.rows is None or self.outgoing is None:
            return [chunks_of(flat, those) for flat, those in zip(self.flats, self._owners, strict=True)]
        sent = self.rows.by_row(self.outgoing)
        return [
            {member: sent.get((number, member), own) for member in members}
            for number, (own, members) in enumerate(zip(self.own, self._owners, strict=True))
        ]

    @cached_property
    def stretches(self) -> Sequence[Sequence[Tensor]]:
        """For each tensor the runs of memory in which it lies, in order."""
        if self.rows is None:
            return [(flat,) for flat in self.flats]
        return [tuple(chunks.values()) for chunks in self.chunks]

    @property
    def dtypes(self) -> Sequence[torch.dtype]:
        """The dtype of each tensor."""
        return [flat.dtype for flat in self.flats] if self.rows is None else self.rows.kept.dtypes


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
        if self.is_split:
            return Room([buffer], self.owners, (), self.rows)
        return Room([buffer], self.owners, self.rows.kept.views(buffer[self.rows.nbytes :]))


def room_of(flats: Sequence[Tensor], owners: Sequence[OwnerSet]) -> Room:
    """Returns a room of tensors that lie anywhere, each with its owners' chunks one after the other."""
    return Room(flats, owners, flats)


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
