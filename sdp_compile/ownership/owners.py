"""Which workers own which units of a family, in compact form.

A family has few distinct owner sets, and neighbouring units mostly have the same: 28,672 neurons over 4,096 workers are
8 sets and one small number per unit. Nothing here ever builds a dense units x workers matrix.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import index
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from sdp_compile.structure.layout import Indices

OwnerSet: TypeAlias = tuple[int, ...]
"""Ascending worker numbers, each once."""


def owner_set(workers: Iterable[int]) -> OwnerSet:
    """The canonical form of a collection of workers; raises TypeError for anything that is no integer."""
    numbers = set()
    for worker in workers:
        if isinstance(worker, bool):
            raise TypeError(f"{worker!r} is not a worker number")
        numbers.add(index(worker))
    return tuple(sorted(numbers))


def is_member(rank: int, owners: OwnerSet) -> bool:
    """Whether ``rank`` is one of ``owners``, in logarithmic time."""
    position = bisect_left(owners, rank)
    return position < len(owners) and owners[position] == rank


def refresh_source(number: int, owners: OwnerSet, receiver: int) -> int:
    """The owner from which ``receiver``, who is none, gets the values of piece ``number``.

    The owners hold the same bits; the others take turns among them, beginning with another one for each piece.
    """
    return owners[(receiver - bisect_left(owners, receiver) + number) % len(owners)]


def refresh_receivers(number: int, owners: OwnerSet, source: int, workers: int) -> int:
    """To how many workers ``source``, an owner, sends the values of piece ``number``; see `refresh_source`."""
    first = (bisect_left(owners, source) - number) % len(owners)
    return len(range(first, workers - len(owners), len(owners)))


def intersect(first: OwnerSet, second: OwnerSet) -> OwnerSet:
    """The workers that are in both."""
    return first if first is second or first == second else tuple(sorted(set(first).intersection(second)))


class OwnerSets:
    """Numbers owner sets by their first appearance.

    An object seen before is found by its identity: hashing a tuple of thousands of workers for each of thousands of
    tensor pieces would take longer than all else.
    """

    def __init__(self) -> None:
        self.sets: list[OwnerSet] = []
        self._numbers: dict[OwnerSet, int] = {}
        self._seen: dict[int, tuple[OwnerSet, int]] = {}  # keeps the objects alive, so that no identity is reused

    def number(self, owners: OwnerSet) -> int:
        """The number of an owner set; a new one if no equal set has been seen."""
        seen = self._seen.get(id(owners))
        if seen is not None:
            return seen[1]
        number = self._numbers.setdefault(owners, len(self.sets))
        if number == len(self.sets):
            self.sets.append(owners)
        self._seen[id(owners)] = (owners, number)
        return number


class Ownership(Sequence[OwnerSet]):
    """The owners of each unit of a family: a sequence of owner sets.

    ``sets`` holds the distinct ones in the order of their first units, ``labels`` for each unit the number of its set.
    """

    __slots__ = ("_hash", "labels", "sets")

    def __init__(self, sets: Sequence[OwnerSet], labels: Indices) -> None:
        """From distinct canonical owner sets and each unit's number among them."""
        used, first = np.unique(labels, return_index=True)
        by_unit = used[np.argsort(first)]
        renumbered = np.zeros(len(sets), dtype=np.int64)
        renumbered[by_unit] = np.arange(len(by_unit))
        self.sets: tuple[OwnerSet, ...] = tuple(sets[number] for number in by_unit.tolist())
        self.labels: Indices = renumbered[labels]
        self._hash = hash((self.sets, self.labels.tobytes()))

    @classmethod
    def from_runs(cls, runs: Iterable[tuple[int, OwnerSet]]) -> Ownership:
        """From runs of (units, owners)."""
        known = OwnerSets()
        pairs = [(known.number(owners), units) for units, owners in runs]
        numbers, units = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return cls(known.sets, np.repeat(numbers, units))

    @classmethod
    def of(cls, owners: Sequence[Collection[int]]) -> Ownership:
        """From the owners of each unit, in any order and with repetitions; raises TypeError for non-integers."""
        return owners if isinstance(owners, cls) else cls.from_runs((1, owner_set(workers)) for workers in owners)

    @property
    def label_runs(self) -> list[tuple[int, int]]:
        """The labels as (units, number of the set)."""
        return runs_of(self.labels)

    @property
    def runs(self) -> tuple[tuple[int, OwnerSet], ...]:
        """The units in order, as (units, owners)."""
        return tuple((units, self.sets[number]) for units, number in self.label_runs)

    @property
    def replicas(self) -> int:
        """The owners of the unit that has fewest."""
        return min(map(len, self.sets), default=0)

    def holds(self, rank: int) -> NDArray[np.bool_]:
        """For each unit whether ``rank`` owns it."""
        members = np.array([is_member(rank, owners) for owners in self.sets], dtype=np.bool_)
        return members[self.labels]

    def owned(self, rank: int) -> Indices:
        """The units that ``rank`` owns, ascending."""
        return np.flatnonzero(self.holds(rank)).astype(np.int64)

    def loads(self, weights: Sequence[float] | NDArray[np.float64], workers: int) -> NDArray[np.float64]:
        """Per worker the sum of ``weights`` over the units that it owns."""
        by_set = np.bincount(self.labels, np.asarray(weights, dtype=np.float64), minlength=len(self.sets))
        result = np.zeros(workers)
        for owners, weight in zip(self.sets, by_set.tolist(), strict=True):
            result[np.asarray(owners)] += weight
        return result

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, unit: int) -> OwnerSet: ...

    @overload
    def __getitem__(self, unit: slice) -> Sequence[OwnerSet]: ...

    def __getitem__(self, unit: int | slice) -> OwnerSet | Sequence[OwnerSet]:
        if isinstance(unit, slice):
            return [self.sets[number] for number in self.labels[unit].tolist()]
        return self.sets[int(self.labels[unit])]

    def __iter__(self) -> Iterator[OwnerSet]:
        return (self.sets[number] for number in self.labels.tolist())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ownership):
            return NotImplemented
        alike = self._hash == other._hash and self.sets == other.sets
        return self is other or (alike and np.array_equal(self.labels, other.labels))

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[object, ...]:
        return _from_label_runs, (self.sets, self.label_runs)

    def __repr__(self) -> str:
        return f"Ownership.from_runs({list(self.runs)!r})"


def _from_label_runs(sets: Sequence[OwnerSet], runs: Iterable[tuple[int, int]]) -> Ownership:
    return Ownership.from_runs((units, sets[number]) for units, number in runs)


def runs_of(labels: Indices) -> list[tuple[int, int]]:
    """A sequence of numbers as (length, number)."""
    starts = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]])) if len(labels) else labels
    lengths = np.diff(np.append(starts, len(labels)))
    return list(zip(lengths.tolist(), labels[starts].tolist(), strict=True))


def worker_classes(sets: Iterable[OwnerSet], workers: int) -> list[list[int]]:
    """The workers grouped by which of the owner sets they are in; workers of one class own exactly the same.

    Figures that only depend on what a worker owns need computing once per class: a cyclic plan over 4,096 workers has
    8 classes.
    """
    labels = np.zeros(workers, dtype=np.int64)
    for owners in sets:
        member = np.zeros(workers, dtype=np.int64)
        member[np.asarray(owners, dtype=np.int64)] = 1
        labels = np.unique(labels * 2 + member, return_inverse=True)[1].reshape(-1)
    classes: dict[int, list[int]] = {}
    for worker, label in enumerate(labels.tolist()):
        classes.setdefault(label, []).append(worker)
    return sorted(classes.values())
