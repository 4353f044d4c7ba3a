"""How a family is to be placed on workers: replicas, slots of units, cells of workers.

Designs work on K slots of units and K *cells* of workers: worker w is in cell w mod K. Workers of one cell own the
same, so a rank is a member of few owner groups however many workers there are. ``share`` (p) of the K cells own a
unit, that is P = p N / K workers.
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
from sdp_compile.structure.families import Family, FamilyKind
from sdp_compile.structure.layout import Indices

Weights: TypeAlias = NDArray[np.float64]
"""One row per unit: parameter bytes and forward FLOPs."""

MOST_DEFAULT_SLOTS = 8
"""More slots make more owner groups on each rank, and each costs a collective per bucket."""


@dataclass(frozen=True)
class Grid:
    """K ``slots`` (and cells) for ``workers`` workers, of which ``share`` cells own a unit."""

    workers: int
    slots: int
    share: int

    @property
    def replicas(self) -> int:
        return self.share * self.workers // self.slots

    def needed_share(self, units: int) -> int:
        """The smallest share at which every worker owns one of ``units`` units: any so many slots hold a unit."""
        return -(-self.slots // units)


def replicas_for(workers: int, coverage: float | None, replicas: int | None) -> int:
    """P: the owners that each unit gets."""
    if replicas is None:
        assert coverage is not None, "one of the two is always given"
        return min(workers, max(1, floor(coverage * workers + 0.5)))
    if replicas > workers:
        raise PolicyError(
            f"replicas={replicas} is more than the {workers} workers. Use at most {workers}, or coverage."
        )
    return replicas


def grid(workers: int, coverage: float | None, replicas: int | None, slots: int | None) -> Grid:
    """The slots for a coverage or a number of replicas; ``slots`` None takes the default."""
    owners = replicas_for(workers, coverage, replicas)
    exact = coverage if replicas is None and coverage is not None else owners / workers
    possible = [count for count in divisors(workers) if is_whole(count * exact)]
    if slots is not None:
        if slots != workers and slots not in possible:
            choice = ", ".join(map(str, dict.fromkeys((*possible, workers))))
            raise PolicyError(
                f"slots={slots} cannot give each unit {owners} owners of {workers} workers: slots must "
                f"divide the workers, and slots x coverage be whole. Possible: {choice}."
            )
        return Grid(workers, slots, owners * slots // workers)
    count = max((count for count in possible if count <= MOST_DEFAULT_SLOTS), default=workers)
    return Grid(workers, count, owners * count // workers)


def divisors(number: int) -> list[int]:
    """All divisors, ascending."""
    return [count for count in range(1, number + 1) if number % count == 0]


def rounding_note(coverage: float | None, asked: Grid) -> list[str]:
    """What the report says where the coverage asked for is no whole number of workers."""
    achieved = asked.replicas / asked.workers
    if coverage is None or abs(coverage - achieved) < 1e-9:
        return []
    return [
        f"coverage={coverage:g} of {asked.workers} workers: each unit has {asked.replicas} owners, a coverage of "
        f"{achieved:.3g}."
    ]


def weights_of(family: Family) -> Weights:
    """The bytes and FLOPs of each unit."""
    flops = family.unit_flops or (0.0,) * family.units
    return np.stack([np.asarray(family.unit_bytes, dtype=np.float64), np.asarray(flops, dtype=np.float64)], axis=1)


def is_whole(number: float) -> bool:
    """Whether a number is a positive integer up to rounding (1/3 x 3 workers)."""
    return round(number) > 0 and abs(number - round(number)) < 1e-9


@cache
def workers_of(cells: frozenset[int], slots: int, workers: int) -> OwnerSet:
    """All workers w with w mod ``slots`` in ``cells``, ascending; cached, since a plan has few of them."""
    return tuple(worker for worker in range(workers) if worker % slots in cells)


@dataclass(frozen=True, eq=False)
class Placement:
    """The task of placing the units of one family. ``shares`` has one entry per unit: the cells that are to own it."""

    family: str
    kind: FamilyKind
    workers: int
    slots: int
    shares: Indices
    weights: Weights
    align: int = 1
    seed: int = 0

    @property
    def units(self) -> int:
        return len(self.shares)

    def owners(self, cells: Iterable[int]) -> OwnerSet:
        """The workers of some cells."""
        return workers_of(frozenset(cell % self.slots for cell in cells), self.slots, self.workers)

    def slot_of_units(self) -> Indices:
        """The slot of each unit: unit u of U lies in slot floor(u K / U), so slots are contiguous and about equal.

        Where there are enough units, slots start at multiples of ``align``.
        """
        groups = -(-self.units // self.align)
        align, groups = (self.align, groups) if groups >= self.slots else (1, self.units)
        return np.arange(self.units, dtype=np.int64) // align * self.slots // groups
