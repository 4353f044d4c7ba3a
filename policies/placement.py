"""How a family is placed on workers: replicas, slots of units, cells of workers.

Designs place K slots of units on K *cells* of workers; worker w is in cell w mod K, or in that of its node's number mod
K where nodes can be dealt evenly to the cells. The workers of one cell own the same units, so a rank is in few owner
groups even among thousands of workers. Each unit is owned by a ``share`` p of the K cells, that is by P = p N / K
workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import floor
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sdp_compile.errors import PolicyError
from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.policies.nodes import stride_of
from sdp_compile.structure.families import Family, FamilyKind
from sdp_compile.structure.layout import Indices

Weights: TypeAlias = NDArray[np.float64]
"""One row per unit, with its parameter bytes and its forward FLOPs."""

MOST_DEFAULT_SLOTS = 8
"""The default number of slots is at most this. Each slot adds owner groups, and each group costs collectives."""


@dataclass(frozen=True)
class Grid:
    """A family's division into K slots of units and K cells of workers.

    Attributes:
        workers: The number N of workers.
        slots: The number K of slots, and of cells.
        share: The number p of cells that own each unit.
    """

    workers: int
    slots: int
    share: int

    @property
    def replicas(self) -> int:
        """The number P of workers that own each unit."""
        return self.share * self.workers // self.slots

    def needed_share(self, units: int) -> int:
        """Returns the smallest share at which every worker owns at least one of ``units`` units."""
        return -(-self.slots // units)


def replicas_for(workers: int, coverage: float | None, replicas: int | None) -> int:
    """Returns the number P of owners of each unit, from ``replicas`` or else from ``coverage``.

    Raises:
        PolicyError: There are fewer workers than ``replicas``.
    """
    if replicas is None:
        assert coverage is not None, "one of the two is always given"
        return min(workers, max(1, floor(coverage * workers + 0.5)))
    if replicas > workers:
        raise PolicyError(
            f"replicas={replicas} is more than the {workers} workers. Use at most {workers}, or coverage."
        )
    return replicas


def grid(workers: int, coverage: float | None, replicas: int | None, slots: int | None) -> Grid:
    """Returns the slots and cells for a coverage or a number of replicas.

    Args:
        workers: The number N of workers.
        coverage: The share of the workers that own each unit; used if ``replicas`` is None.
        replicas: The number of workers that own each unit.
        slots: The number K of slots, or None for the default: the largest divisor of N, at most 8, that makes
            K x coverage a whole number, or N if there is none.

    Raises:
        PolicyError: The slots do not fit the workers and the coverage.
    """
    owners = replicas_for(workers, coverage, replicas)
    exact = coverage if replicas is None and coverage is not None else owners / workers
    possible = [count for count in divisors(workers) if is_whole(count * exact)]
    if slots is not None:
        if slots != workers and slots not in possible:
            choice = ", ".join(map(str, dict.fromkeys((*possible, workers))))
            raise PolicyError(
                f"slots={slots} cannot give each unit {owners} of {workers} workers: slots must divide the workers, "
                f"and slots x coverage must be whole. Possible: {choice}."
            )
        return Grid(workers, slots, owners * slots // workers)
    count = max((count for count in possible if count <= MOST_DEFAULT_SLOTS), default=workers)
    return Grid(workers, count, owners * count // workers)


def divisors(number: int) -> list[int]:
    """Returns all divisors of ``number``, ascending."""
    return [count for count in range(1, number + 1) if number % count == 0]


def rounding_note(coverage: float | None, asked: Grid) -> list[str]:
    """Returns a note for the report if the coverage asked for is not a whole number of workers."""
    achieved = asked.replicas / asked.workers
    if coverage is None or abs(coverage - achieved) < 1e-9:
        return []
    return [
        f"coverage={coverage:g} of {asked.workers} workers: each unit has {asked.replicas} owners, a coverage of "
        f"{achieved:.3g}."
    ]


def weights_of(family: Family) -> Weights:
    """Returns the parameter bytes and forward FLOPs of each unit."""
    flops = family.unit_flops or (0.0,) * family.units
    return np.stack([np.asarray(family.unit_bytes, dtype=np.float64), np.asarray(flops, dtype=np.float64)], axis=1)


def is_whole(number: float) -> bool:
    """Whether ``number`` is a positive integer up to rounding errors, as 3 x (1/3) is."""
    return round(number) > 0 and abs(number - round(number)) < 1e-9


@cache
def workers_of(cells: frozenset[int], slots: int, workers: int, stride: int = 1) -> OwnerSet:
    """Returns all workers of ``cells``, ascending: those w for which it holds (w // ``stride``) mod ``slots``.

    Cached, since a plan has few such sets.
    """
    return tuple(worker for worker in range(workers) if worker // stride % slots in cells)


@dataclass(frozen=True, eq=False)
class Placement:
    """The task of placing the units of one family on workers.

    Attributes:
        family: The name of the family.
        kind: Whether its units are indices of an axis or blocks.
        workers: The number N of workers.
        slots: The number K of slots, and of cells.
        shares: For each unit, the number of cells that are to own it.
        weights: For each unit, its parameter bytes and its forward FLOPs.
        align: Slots start at multiples of this many units, if there are enough units.
        seed: Random seed for designs that draw at random.
        node_size: The number of workers of each node, or 0 for one node with all workers.
    """

    family: str
    kind: FamilyKind
    workers: int
    slots: int
    shares: Indices
    weights: Weights
    align: int = 1
    seed: int = 0
    node_size: int = 0

    @property
    def stride(self) -> int:
        """How many neighbouring workers share a cell: worker w is in cell (w // stride) mod K."""
        return stride_of(self.workers, self.slots, self.node_size or self.workers)

    @property
    def units(self) -> int:
        """The number of units."""
        return len(self.shares)

    def owners(self, cells: Iterable[int]) -> OwnerSet:
        """Returns the workers of the given cells, which are taken modulo K."""
        return workers_of(frozenset(cell % self.slots for cell in cells), self.slots, self.workers, self.stride)

    def slot_of_units(self) -> Indices:
        """Returns the slot of each unit. Unit u of U is in slot floor(u K / U): slots are contiguous and about equal.

        If there are enough units, slots start at multiples of ``align``.
        """
        groups = -(-self.units // self.align)
        align, groups = (self.align, groups) if groups >= self.slots else (1, self.units)
        return np.arange(self.units, dtype=np.int64) // align * self.slots // groups
