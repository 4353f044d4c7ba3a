"""Where the rows that workers exchange lie in one buffer, for one all-to-all that serves many tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from sdp_compile.ownership.owners import OwnerSet

ALIGNED = 16
"""Rows of different dtypes begin at multiples of this many bytes."""

Row = tuple[int, int]
"""The number of a tensor, and the worker to whom its row goes or from whom it comes."""


@dataclass(frozen=True)
class Rows:
    """The rows that a worker exchanges with its peers.

    A row of each tensor goes to each of its other owners, and one as long comes from each. What a peer gets, and what
    comes from it, lie together, in the order of the tensors.

    Attributes:
        order: The rows in the order in which they lie in a buffer.
        sizes: How many bytes each member of the group gets, and sends.
        dtype: The dtype of all rows; None where they have several.
        lengths: The elements of each row.
        places: For rows of several dtypes, the first byte of each and its dtype.
    """

    order: tuple[Row, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype | None
    lengths: tuple[int, ...]
    places: tuple[tuple[int, torch.dtype], ...]

    @property
    def nbytes(self) -> int:
        """The bytes of a buffer."""
        return sum(self.sizes)

    def room(self, device: torch.device) -> Tensor:
        """Returns a new buffer, of bytes."""
        return torch.empty(self.nbytes, dtype=torch.uint8, device=device)

    def views(self, buffer: Tensor) -> Mapping[Row, Tensor]:
        """Returns each row in a buffer, as numbers."""
        return dict(zip(self.order, self._views(buffer), strict=True))

    def _views(self, buffer: Tensor) -> Iterator[Tensor]:
        if self.dtype is not None:
            yield from buffer.view(self.dtype).split_with_sizes(list(self.lengths))
            return
        for (start, dtype), length in zip(self.places, self.lengths, strict=True):
            yield buffer[start : start + length * dtype.itemsize].view(dtype)


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
    kinds = set(dtypes)
    order, sizes, places, start = [], [], [], 0
    for peer in members:
        before = start
        for number, those in enumerate(owners):
            if peer == rank or peer not in those:
                continue
            order.append((number, peer))
            places.append((start, dtypes[number]))
            nbytes = lengths[number] * dtypes[number].itemsize
            start += nbytes if len(kinds) == 1 else -(-nbytes // ALIGNED) * ALIGNED
        sizes.append(start - before)
    return Rows(
        tuple(order),
        tuple(sizes),
        dtypes[0] if len(kinds) == 1 else None,
        tuple(lengths[number] for number, _ in order),
        () if len(kinds) == 1 else tuple(places),
    )


def chunks_of(flat: Tensor, owners: OwnerSet) -> Mapping[int, Tensor]:
    """Returns each owner's chunk of a tensor that has them one after the other, equally long."""
    return dict(zip(owners, flat.view(len(owners), -1).unbind(), strict=True))
