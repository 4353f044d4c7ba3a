"""Boxes: contiguous blocks of a full tensor, the pieces of checkpoints and of optimizer states that are split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np

from sdp_compile.structure.layout import Indices

_MOST_CELLS = 50_000_000
"""How many cells the grid of a tensor's boxes may have. Only a damaged or hostile file needs more."""


@dataclass(frozen=True)
class Box:
    """A contiguous block of a tensor.

    Attributes:
        offsets: The first index along each dimension.
        sizes: The number of indices along each dimension.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(self.sizes)

    @property
    def slices(self) -> tuple[slice, ...]:
        """What selects the box of a tensor."""
        return tuple(slice(start, start + size) for start, size in zip(self.offsets, self.sizes, strict=True))


def boxes(index: Sequence[Indices], local: Sequence[Indices]) -> Iterator[tuple[Box, Box]]:
    """Yields the boxes of an outer product of index lists, in the full tensor and in the local one.

    Args:
        index: One ascending list of indices of the full tensor for each dimension.
        local: Where these indices lie in the local tensor; neighbours in the full tensor are neighbours there too.
    """
    runs = [_runs(full, own) for full, own in zip(index, local, strict=True)]
    for parts in product(*runs):
        sizes = tuple(size for _, _, size in parts)
        yield Box(tuple(start for start, _, _ in parts), sizes), Box(tuple(start for _, start, _ in parts), sizes)


def _runs(full: Indices, local: Indices) -> list[tuple[int, int, int]]:
    """Returns the runs of consecutive indices: the start of each in both tensors, and its length."""
    if not len(full):
        return []
    breaks = np.flatnonzero((np.diff(full) != 1) | (np.diff(local) != 1)) + 1
    starts = [0, *breaks.tolist()]
    return [
        (int(full[start]), int(local[start]), stop - start)
        for start, stop in zip(starts, [*starts[1:], len(full)], strict=True)
    ]


def flat_boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Yields boxes that make up the elements ``start`` to ``stop`` of a tensor in its flat order, in that order.

    Args:
        shape: The shape of the tensor.
        start: The first element.
        stop: The end of the elements.
    """
    if start >= stop:
        return
    if not shape:
        yield Box((), ())
        return
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:  # within one row
        yield from _row(shape, last, start - last * row, stop - last * row)
        return
    yield from _row(shape, first - 1, start - (first - 1) * row, row) if first * row > start else ()
    if first < last:
        yield Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))
    yield from _row(shape, last, 0, stop - last * row)


def _row(shape: Sequence[int], row: int, start: int, stop: int) -> Iterator[Box]:
    for box in flat_boxes(shape[1:], start, stop):
        yield Box((row, *box.offsets), (1, *box.sizes))


def cover_exactly(parts: Sequence[Box], shape: Sequence[int]) -> bool:
    """Whether boxes cover a tensor so that every element lies in exactly one of them.

    Args:
        parts: The boxes, which lie within the tensor.
        shape: The tensor's shape.
    """
    if prod(shape) == 0:
        return all(part.numel == 0 for part in parts)
    if sum(part.numel for part in parts) != prod(shape):
        return False
    # On a grid with a line wherever a box begins or ends, each box is a block of whole cells.
    lines = [
        np.unique([0, *(at for part in parts for at in (part.offsets[dim], part.offsets[dim] + part.sizes[dim]))])
        for dim in range(len(shape))
    ]
    if prod(len(at) for at in lines) > _MOST_CELLS:
        return False
    cells = np.zeros([len(at) - 1 for at in lines], dtype=np.int32)
    for part in parts:
        place = tuple(
            slice(*np.searchsorted(at, [start, start + size]))
            for at, start, size in zip(lines, part.offsets, part.sizes, strict=True)
        )
        cells[place] += 1
    return bool((cells == 1).all())
