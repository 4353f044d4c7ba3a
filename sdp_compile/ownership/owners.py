"""Which workers own which units of a family, in compact form.

A family has few distinct owner sets: 28,672 neurons over 4,096 workers take 8 sets and one small number per unit.
Nothing here ever builds a dense matrix of units and workers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from operator import index
from struct import pack
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from sdp_compile.structure.layout import Indices

OwnerSet: TypeAlias = tuple[int, ...]
"""Distinct worker numbers in ascending order."""

_SETS_AT_ONCE = 63  # one bit of an integer each


def owner_set(workers: Iterable[int]) -> OwnerSet:
    """Returns the canonical form of a collection of worker numbers.

    Raises:
        TypeError: A worker number is not an integer.
    """
    numbers = set()
    for worker in workers:
        if isinstance(worker, bool):
            raise TypeError(f"{worker!r} is not a worker number")
        numbers.add(index(worker))
    return tuple(sorted(numbers))


def is_member(rank: int, owners: OwnerSet) -> bool:
    """Whether ``rank`` is one of ``owners``. Takes logarithmic time."""
    position = bisect_left(owners, rank)
    return position < len(owners) and owners[position] == rank


def refresh_sources(number: int, owners: OwnerSet, group: OwnerSet) -> dict[int, int]:
    """Returns for each worker of a group that does not own a piece the owner that sends it the values.

    The owners hold the same bits. The other workers are dealt to those in the group in turn, starting with another
    owner for each piece, so that all owners send about equally much.

    Args:
        number: The number of the piece.
        owners: The owners of the piece.
        group: The workers that send each other values; some of them own the piece.
    """
    sources = [worker for worker in group if is_member(worker, owners)]
    receivers = (worker for worker in group if not is_member(worker, owners))
    return {worker: sources[(place + number) % len(sources)] for place, worker in enumerate(receivers)}


def intersect(first: OwnerSet, second: OwnerSet) -> OwnerSet:
    """Returns the workers that are in both sets."""
    return first if first is second or first == second else tuple(sorted(set(first).intersection(second)))


class OwnerSets:
    """Numbers owner sets in the order in which they first appear.

    An object that was seen before is found by its identity. Hashing a tuple of thousands of workers for each of
    thousands of tensor pieces would dominate the time of planning.

    Attributes:
        sets: The distinct owner sets, by number.
    """

    def __init__(self) -> None:
        self.sets: list[OwnerSet] = []
        self._numbers: dict[OwnerSet, int] = {}
        self._seen: dict[int, tuple[OwnerSet, int]] = {}  # keeps the objects alive, so that no identity is reused

    def number(self, owners: OwnerSet) -> int:
        """Returns the number of an owner set, and gives a new one to a set that was not seen before."""
        seen = self._seen.get(id(owners))
        if seen is not None:
            return seen[1]
        number = self._numbers.setdefault(owners, len(self.sets))
        if number == len(self.sets):
            self.sets.append(owners)
        self._seen[id(owners)] = (owners, number)
        return number


class Ownership(Sequence[OwnerSet]):
    """The owners of each unit of a family, as an immutable sequence of owner sets.

    Args:
        sets: Distinct owner sets.
        labels: For each unit, the number of its owner set in ``sets``.

    Attributes:
        sets: The owner sets in use, in the order of their first units.
        labels: For each unit, the number of its owner set.
    """

    __slots__ = ("_hash", "labels", "sets")

    def __init__(self, sets: Sequence[OwnerSet], labels: Indices) -> None:
        used, first = np.unique(labels, return_index=True)
        by_unit = used[np.argsort(first)]
        renumbered = np.zeros(len(sets), dtype=np.int64)
        renumbered[by_unit] = np.arange(len(by_unit))
        self.sets: tuple[OwnerSet, ...] = tuple(sets[number] for number in by_unit.tolist())
        self.labels: Indices = renumbered[labels]
        self._hash = hash((self.sets, self.labels.tobytes()))

    @classmethod
    def from_runs(cls, runs: Iterable[tuple[int, OwnerSet]]) -> Ownership:
        """Returns the ownership of consecutive runs, given as pairs of (number of units, owners)."""
        known = OwnerSets()
        pairs = [(known.number(owners), units) for units, owners in runs]
        numbers, units = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return cls(known.sets, np.repeat(numbers, units))

    @classmethod
    def of(cls, owners: Sequence[Collection[int]]) -> Ownership:
        """Returns the ownership for the owners of each unit, which may be unordered and repeat workers.

        Raises:
            TypeError: A worker number is not an integer.
        """
        return owners if isinstance(owners, cls) else cls.from_runs((1, owner_set(workers)) for workers in owners)

    @property
    def label_runs(self) -> list[tuple[int, int]]:
        """The labels as runs of (number of units, label)."""
        return runs_of(self.labels)

    @property
    def runs(self) -> tuple[tuple[int, OwnerSet], ...]:
        """The units in order, as runs of (number of units, owners)."""
        return tuple((units, self.sets[number]) for units, number in self.label_runs)

    @property
    def replicas(self) -> int:
        """The smallest number of owners of any unit."""
        return min(map(len, self.sets), default=0)

    def holds(self, rank: int) -> NDArray[np.bool_]:
        """Returns for each unit whether ``rank`` owns it."""
        members = np.array([is_member(rank, owners) for owners in self.sets], dtype=np.bool_)
        return members[self.labels]

    def owned(self, rank: int) -> Indices:
        """Returns the units that ``rank`` owns, ascending."""
        return np.flatnonzero(self.holds(rank)).astype(np.int64)

    def loads(self, weights: Sequence[float] | NDArray[np.float64], workers: int) -> NDArray[np.float64]:
        """Returns for each worker the sum of ``weights``, one per unit, over the units that it owns."""
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
    """Returns the runs of equal numbers in ``labels``, as pairs of (length, number)."""
    starts = np.flatnonzero(np.concatenate([[True], labels[1:] != labels[:-1]])) if len(labels) else labels
    lengths = np.diff(np.append(starts, len(labels)))
    return list(zip(lengths.tolist(), labels[starts].tolist(), strict=True))


def worker_classes(sets: Iterable[OwnerSet], workers: int) -> list[list[int]]:
    """Returns the workers, grouped so that the workers of one class are in the same owner sets.

    Figures that depend only on what a worker owns are computed once per class. A cyclic plan over 4,096 workers has
    8 classes.
    """
    labels = np.zeros(workers, dtype=np.int64)
    remaining = iter(sets)
    # One bit per set: sorting the workers once for many sets takes a second less where there are thousands of them.
    while some := list(islice(remaining, _SETS_AT_ONCE)):
        codes = np.zeros(workers, dtype=np.int64)
        for bit, owners in enumerate(some):
            members = np.frombuffer(pack(f"{len(owners)}q", *owners), np.int64)  # twice as fast as np.asarray
            codes[members] |= 1 << bit
        numbers = np.unique(codes, return_inverse=True)[1].reshape(-1)
        labels = np.unique(labels * workers + numbers, return_inverse=True)[1].reshape(-1)
    classes: dict[int, list[int]] = {}
    for worker, label in enumerate(labels.tolist()):
        classes.setdefault(label, []).append(worker)
    return sorted(classes.values())
