"""From owners of units to owners of tensor elements.

An element runs through one unit of every family that cuts its tensor. Its owners are the workers that own all of these
units. What a worker keeps of a tensor is therefore an outer product of one index list per dimension, and so is each
piece of the tensor with one owner set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from sdp_compile.ownership.owners import OwnerSet, OwnerSets, Ownership, intersect
from sdp_compile.structure.layout import Indices, Layout, Leaf, Product, Sum


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a tensor whose elements all have the same owners.

    A tensor that is cut along several dimensions can have several pieces with the same owners.

    Attributes:
        name: The name of the full tensor.
        owners: The workers that own every element of the piece.
        index: For each dimension the ascending indices of the full tensor. The piece is their outer product.
    """

    name: str
    owners: OwnerSet
    index: tuple[Indices, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of indices per dimension."""
        return tuple(len(index) for index in self.index)

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)


Part = tuple[OwnerSet, Indices]
"""An owner set, and the indices of one dimension that have these owners."""


class ElementOwners:
    """The owners of the indices of single dimensions, computed from the owners of the units.

    Layouts that differ only in families with equal ownership, such as the layers of a transformer, share their index
    lists.

    Args:
        ownership: The owners of each unit of each family that is cut.
        workers: The number of workers.
    """

    def __init__(self, ownership: Mapping[str, Ownership], workers: int) -> None:
        self.everyone: OwnerSet = tuple(range(workers))
        self._known = OwnerSets()
        self._known.number(self.everyone)  # 0, the label of what no family cuts
        self._intersections: dict[tuple[int, int], int] = {}
        distinct: dict[Ownership, str] = {}
        self._canonical = {name: distinct.setdefault(owners, name) for name, owners in ownership.items()}
        self._ownership = {name: owners for owners, name in distinct.items()}
        self._unit_labels = {
            name: np.array([self._known.number(members) for members in owners.sets], dtype=np.int64)[owners.labels]
            for name, owners in self._ownership.items()
        }
        self._parts: dict[Layout, tuple[Part, ...]] = {}
        self._kept: dict[tuple[Layout, int], Indices] = {}

    def intersection(self, first: OwnerSet, second: OwnerSet) -> OwnerSet:
        """Returns the workers that are in both sets; computed once per pair."""
        return self._known.sets[self._meet(self._known.number(first), self._known.number(second))]

    def parts(self, layout: Layout) -> tuple[Part, ...]:
        """Returns the dimension split by owner set, in the order of first indices. Owner sets can be empty."""
        layout = self._canonicalise(layout)
        if layout not in self._parts:
            labels = self._labels(layout)
            numbers, first = np.unique(labels, return_index=True)
            by_position = numbers[np.argsort(first)].tolist()
            self._parts[layout] = tuple(
                (self._known.sets[number], np.flatnonzero(labels == number).astype(np.int64)) for number in by_position
            )
        return self._parts[layout]

    def kept(self, layout: Layout, rank: int) -> Indices:
        """Returns the indices of the dimension for which ``rank`` owns all units."""
        layout = self._canonicalise(layout)
        if (layout, rank) not in self._kept:
            self._kept[layout, rank] = np.flatnonzero(self._holds(layout, rank)).astype(np.int64)
        return self._kept[layout, rank]

    def pieces(self, name: str, layouts: tuple[Layout, ...], owners: OwnerSet | None = None) -> tuple[Piece, ...]:
        """Returns a tensor split by owner set.

        Args:
            name: The name of the tensor.
            layouts: The layout of each dimension.
            owners: The owners of the block that holds the tensor, or None if no block does.
        """
        result = []
        for parts in product(*(self.parts(layout) for layout in layouts)):
            common = self.everyone if owners is None else self.intersection(self.everyone, owners)
            for part_owners, _ in parts:
                common = self.intersection(common, part_owners)
            result.append(Piece(name, common, tuple(index for _, index in parts)))
        return tuple(result)

    def _meet(self, first: int, second: int) -> int:
        if first == second or second == 0:
            return first
        if first == 0:
            return second
        pair = (min(first, second), max(first, second))
        if pair not in self._intersections:
            self._intersections[pair] = self._known.number(intersect(self._known.sets[first], self._known.sets[second]))
        return self._intersections[pair]

    def _canonicalise(self, layout: Layout) -> Layout:
        if isinstance(layout, Leaf):
            return Leaf(layout.size, self._canonical.get(layout.family) if layout.family is not None else None)
        if isinstance(layout, Product):
            return Product(tuple(self._canonicalise(factor) for factor in layout.factors))
        return Sum(tuple(self._canonicalise(part) for part in layout.parts))

    def _labels(self, layout: Layout) -> Indices:
        """Returns the number of each index's owner set."""
        if isinstance(layout, Leaf):
            whole: Indices = np.zeros(layout.size, dtype=np.int64)
            return whole if layout.family is None else self._unit_labels[layout.family]
        if isinstance(layout, Sum):
            return np.concatenate([self._labels(part) for part in layout.parts])
        result: Indices = np.zeros(1, dtype=np.int64)
        for factor in layout.factors:
            inner = self._labels(factor)
            base = len(self._known.sets)
            codes = np.repeat(result, len(inner)) * base + np.tile(inner, len(result))
            codes, inverse = np.unique(codes, return_inverse=True)
            met = [self._meet(*divmod(code, base)) for code in codes.tolist()]
            result = np.asarray(met, dtype=np.int64)[inverse.reshape(-1)]
        return result

    def _holds(self, layout: Layout, rank: int) -> NDArray[np.bool_]:
        if isinstance(layout, Leaf):
            family = layout.family
            return np.ones(layout.size, dtype=np.bool_) if family is None else self._ownership[family].holds(rank)
        if isinstance(layout, Sum):
            return np.concatenate([self._holds(part, rank) for part in layout.parts])
        result = np.ones(1, dtype=np.bool_)
        for factor in layout.factors:
            result = np.logical_and.outer(result, self._holds(factor, rank)).reshape(-1)
        return result
