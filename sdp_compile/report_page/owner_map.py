"""The owner map: which workers own which units, small enough for a page with any plan.

A lane is a row of the map: a worker, or several workers that own the same units if there are many. A stretch is a
column: consecutive units of one owner set, or of several if a family has very many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sdp_compile.inspector.owners import OwnedFamily, OwnersView, Run

MOST_LANES = 32
MOST_STRETCHES = 64

Pattern = tuple[tuple[int, int, float], ...]
"""How a stretch is drawn: (first lane, number of lanes, share of their workers that own the units)."""


Lane = tuple[int, ...]
"""The workers of one row of the map."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive units with ``sets`` distinct owner sets; ``owners`` is the owner set if there is only one."""

    first: int
    units: int
    nbytes: int
    sets: int
    owners: tuple[int, ...]
    names: tuple[str, ...]
    pattern: int

    @property
    def last(self) -> int:
        """The last unit."""
        return self.first + self.units - 1


@dataclass(frozen=True)
class MapRow:
    """A family and those ``alike``; ``owned`` counts the units that a worker of each lane owns."""

    family: OwnedFamily
    alike: tuple[OwnedFamily, ...]
    stretches: tuple[Stretch, ...]
    owned: tuple[int, ...]


class OwnerMap:
    """The map of a plan: ``lanes``, ``rows``, and the ``patterns`` that stretches refer to by index."""

    def __init__(self, view: OwnersView) -> None:
        self.view = view
        self.lanes = _lanes(view)
        self._patterns: dict[Pattern, int] = {}
        self._lane_of = np.zeros(view.workers, dtype=np.int64)
        for number, lane in enumerate(self.lanes):
            self._lane_of[list(lane)] = number
        self._sizes = np.array([len(lane) for lane in self.lanes])
        self.rows = [self._row(family) for family in view.families if family.like is None]

    @property
    def patterns(self) -> list[Pattern]:
        """The distinct patterns of all stretches."""
        return list(self._patterns)

    @cached_property
    def _class_of(self) -> dict[int, int]:
        return {worker: number for number, one in enumerate(self.view.classes) for worker in one.workers}

    def _row(self, family: OwnedFamily) -> MapRow:
        alike = tuple(other for other in self.view.families if other.like == family.name)
        step = -(-len(family.runs) // MOST_STRETCHES)
        stretches = [self._stretch(family, family.runs[at : at + step]) for at in range(0, len(family.runs), step)]
        owned = tuple(family.owned[self._class_of[lane[0]]] for lane in self.lanes)
        return MapRow(family, alike, tuple(stretches), owned)

    def _stretch(self, family: OwnedFamily, runs: Sequence[Run]) -> Stretch:
        units = sum(run.units for run in runs)
        fill = sum((self._fill(run.owners) * run.units for run in runs), np.zeros(len(self.lanes))) / units
        sets = {run.owners for run in runs}
        first = runs[0].first
        return Stretch(
            first=first,
            units=units,
            nbytes=sum(run.nbytes for run in runs),
            sets=len(sets),
            owners=self.view.sets[runs[0].owners] if len(sets) == 1 else (),
            names=tuple(family.unit_names[first : first + units]),
            pattern=self._patterns.setdefault(_pattern(fill), len(self._patterns)),
        )

    def _fill(self, number: int) -> NDArray[np.float64]:
        """The share of each lane's workers that are in an owner set."""
        members = self._lane_of[list(self.view.sets[number])]
        share: NDArray[np.float64] = np.bincount(members, minlength=len(self.lanes)) / self._sizes
        return share


def _lanes(view: OwnersView) -> tuple[Lane, ...]:
    """One lane per worker, or one per class (or several classes) of workers if there are many."""
    if view.workers <= MOST_LANES:
        return tuple((worker,) for worker in range(view.workers))
    step = -(-len(view.classes) // MOST_LANES)
    together = (view.classes[at : at + step] for at in range(0, len(view.classes), step))
    return tuple(tuple(sorted(worker for one in classes for worker in one.workers)) for classes in together)


def _pattern(fill: NDArray[np.float64]) -> Pattern:
    pattern, lane = [], 0
    for share, lanes in groupby(np.round(fill, 2).tolist()):
        count = len(list(lanes))
        if share:
            pattern.append((lane, count, share))
        lane += count
    return tuple(pattern)
