"""The owner map: stretches of units against workers, of a size that a page can hold whatever the plan.

A lane is one row of the map: a worker, or workers that own the same where there are many. A stretch is one column:
consecutive units of one owner set, or of several where a family has very many.
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
"""What a stretch looks like: (first lane, lanes, share of these lanes' workers that own its units)."""


Lane = tuple[int, ...]
"""The workers of one row of the map."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive units; ``sets`` counts the owner sets among them, ``owners`` are those of the only one."""

    first: int
    units: int
    nbytes: int
    sets: int
    owners: tuple[int, ...]
    names: tuple[str, ...]
    pattern: int

    @property
    def last(self) -> int:
        return self.first + self.units - 1


@dataclass(frozen=True)
class MapRow:
    """One family with those that are owned alike; ``owned`` counts for each lane the units that one worker owns."""

    family: OwnedFamily
    alike: tuple[OwnedFamily, ...]
    stretches: tuple[Stretch, ...]
    owned: tuple[int, ...]


class OwnerMap:
    """The map of a plan: ``lanes``, ``rows``, and the ``patterns`` that the stretches refer to by position."""

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
        """For each lane the share of its workers that are in an owner set."""
        members = self._lane_of[list(self.view.sets[number])]
        share: NDArray[np.float64] = np.bincount(members, minlength=len(self.lanes)) / self._sizes
        return share


def _lanes(view: OwnersView) -> tuple[Lane, ...]:
    """A lane per worker; where there are more, one per class of workers that own the same, or per several classes."""
    if view.workers <= MOST_LANES:
        return tuple((worker,) for worker in range(view.workers))
    step = -(-len(view.classes) // MOST_LANES)
    together = (view.classes[at : at + step] for at in range(0, len(view.classes), step))
    return tuple(tuple(sorted(worker for one in classes for worker in one.workers)) for classes in together)


def _pattern(fill: NDArray[np.float64]) -> Pattern:
    found, lane = [], 0
    for share, lanes in groupby(np.round(fill, 2).tolist()):
        count = len(list(lanes))
        if share:
            found.append((lane, count, share))
        lane += count
    return tuple(found)
