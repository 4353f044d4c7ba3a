"""Which numbers change from call to call, so that the next graph takes them as inputs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from torch import nn

from sdp_compile.ir.numbers import Numbers, Place
from sdp_compile.ir.plain import floats_since, frozen
from sdp_compile.ir.program import Precision, Program

_PATHS = 8  # graphs that take a number and hold on conditions; if it takes yet another path, it is no input


class ChangingNumbers:
    """The numbers of one mode that have changed, apart from those that cannot be inputs."""

    def __init__(self) -> None:
        self._fixed: set[Place] = set()

    def find(self, programs: Sequence[Program], precision: Precision, skeleton: nn.Module) -> list[Place]:
        """Returns where forward reads numbers that have changed since one of the mode's programs was captured.

        Args:
            programs: The programs of the mode.
            precision: The dtypes of the next one.
            skeleton: The original model, which holds the numbers as they are now.
        """
        found: dict[Place, None] = {}
        paths: Counter[Place] = Counter()
        for program in programs:
            numbers = program.numbers
            if numbers is not None and numbers.conditions and program.precision == precision:
                paths.update(place for places in numbers.places for place in places)
            for read in program.reads:
                if read.kind in ("attribute", "global"):
                    for path in floats_since(read.value, frozen(read.now(skeleton))):
                        found[Place(read.kind, read.owner, read.name, path)] = None
        return [
            place
            for place in found
            if place not in self._fixed
            and paths[place] < _PATHS
            and (value := place.now(skeleton))
            and math.isfinite(value)
        ]

    def fix(self, places: Iterable[Place], numbers: Numbers | None) -> None:
        """Notes that of ``places`` only those in ``numbers`` can be inputs."""
        free = {place for group in (() if numbers is None else numbers.places) for place in group}
        self._fixed.update(place for place in places if place not in free)
