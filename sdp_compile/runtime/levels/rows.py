"""Where the rows that workers exchange lie in one buffer, for one all-to-all that serves many tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.runtime.levels.arithmetic import Combination, combination

ALIGNED = 16
"""Rows of different dtypes begin at multiples of this many bytes."""

Row = tuple[int, int]
"""The number of a tensor, and the worker to whom its row goes or from whom it comes."""


@dataclass(frozen=True)
class Places:
    """Where rows lie in a buffer of bytes.

    Attributes:
        lengths: The elements of each row.
        dtypes: The dtype of each row.
        starts: The first byte of each row.
        first: The first byte of all.
        nbytes: The bytes of the buffer.
        dtype: The dtype of all rows, which then lie side by side; None where they have several.
    """

    lengths: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    starts: tuple[int, ...]
    first: int
    nbytes: int
    dtype: torch.dtype | None

    def views(self, buffer: Tensor) -> list[Tensor]:
        """Returns each row in a buffer, as numbers."""
        if self.dtype is not None:
            return list(buffer[self.first :].view(self.dtype).split_with_sizes(list(self.lengths)))
        rows = zip(self.starts, self.lengths, self.dtypes, strict=True)
        return [buffer[start : start + length * dtype.itemsize].view(dtype) for start, length, dtype in rows]


@dataclass(frozen=True)
class Rows:
    """The rows that a worker exchanges with its peers, and those that it keeps.

    A row of each tensor goes to each of its other owners, and one as long comes from each. What a peer gets, and what
    comes from it, lie together, in the order of the tensors. The rows that it keeps lie apart, one of each tensor.

    Attributes:
        rank: This worker.
        owners: The owners of each tensor.
        order: The rows in the order in which they lie in a buffer.
        sizes: How many bytes each member of the group gets, and sends.
        sent: Where the exchanged rows lie.
        kept: Where the rows lie that the worker keeps.
    """

    rank: int
    owners: tuple[OwnerSet, ...]
    order: tuple[Row, ...]
    sizes: tuple[int, ...]
    sent: Places
    kept: Places

    @cached_property
    def combination(self) -> Combination:
        """Adds up rows: those that are kept, followed by those that have come."""
        numbers = {row: len(self.owners) + at for at, row in enumerate(self.order)}
        parts = [
            [number if member == self.rank else numbers[number, member] for member in those]
            for number, those in enumerate(self.owners)
        ]
        return combination(parts, self.kept.dtypes)

    @property
    def nbytes(self) -> int:
        """The bytes of a buffer for what is exchanged."""
        return self.sent.nbytes

    @property
    def kept_nbytes(self) -> int:
        """The bytes of a buffer for what is kept."""
        return self.kept.nbytes

    def room(self, device: torch.device) -> Tensor:
        """Returns a new buffer for what is exchanged, of bytes."""
        return torch.empty(self.nbytes, dtype=torch.uint8, device=device)

    def by_row(self, buffer: Tensor) -> Mapping[Row, Tensor]:
        """Returns each exchanged row in a buffer, as numbers."""
        return dict(zip(self.order, self.sent.views(buffer), strict=True))


@lru_cache(maxsize=4096)
def rows(
    members: OwnerSet,
    rank: int,
    owners: tuple[OwnerSet, ...],
    lengths: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
) -> Rows:
    """Returns how the rows of some tensors lie in a buffer.

    Args:
        members: The workers of the group.
        rank: This worker, which keeps its own rows.
        owners: The owners of each tensor among the members.
        lengths: The elements of a row of each tensor.
        dtypes: The dtype of each tensor.
    """
    step = ALIGNED if len(set(dtypes)) > 1 else 1
    order: list[Row] = []
    sizes = []
    for peer in members:
        numbers = [number for number, those in enumerate(owners) if peer != rank and peer in those]
        order += [(number, peer) for number in numbers]
        sizes.append(sum(_rounded(lengths[number] * dtypes[number].itemsize, step) for number in numbers))
    numbers = [number for number, _ in order]
    sent = _places([lengths[number] for number in numbers], [dtypes[number] for number in numbers], 0, step)
    # What is kept follows what is sent in one buffer, at a multiple of every element's size.
    first = -sent.nbytes % ALIGNED
    kept = _places(lengths, dtypes, first, step)
    return Rows(rank, owners, tuple(order), tuple(sizes), sent, kept)


def _places(lengths: Sequence[int], dtypes: Sequence[torch.dtype], first: int, step: int) -> Places:
    starts, start = [], first
    for length, dtype in zip(lengths, dtypes, strict=True):
        starts.append(start)
        start += _rounded(length * dtype.itemsize, step)
    only = dtypes[0] if step == 1 and dtypes else None
    return Places(tuple(lengths), tuple(dtypes), tuple(starts), first, start, only)


def _rounded(nbytes: int, step: int) -> int:
    return -(-nbytes // step) * step


def chunks_of(flat: Tensor, owners: OwnerSet) -> Mapping[int, Tensor]:
    """Returns each owner's chunk of a tensor that has them one after the other, equally long."""
    return dict(zip(owners, flat.view(len(owners), -1).unbind(), strict=True))
