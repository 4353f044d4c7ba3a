"""How far rounding alone can move a call's results, measured on the original.

The gradient of a bias in front of a BatchNorm is zero, so all of its digits are rounding, and a division by a small
deviation can make them large. No fixed tolerance suits such values. The original says itself how far they move: it runs
again from the first step on, each number changed by one unit in its last place.
"""

from __future__ import annotations

import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sdp_compile.planning.plan import Plan
from tools.fuzz.differences import Difference
from tools.fuzz.instance import Instance, moment, reseed
from tools.fuzz.side import Result, Side

_DRAWS = 8
_MULTIPLE = 4
"""A subnetwork rounds at each operator; the changed original differs in its parameters, buffers and inputs only."""

_CAP = 1000, 0.01
"""Times the plain tolerance, and a relative error: more never counts as rounding, however far the original moves."""

_JUMP = 10
"""Times the largest error of rounding: an original that moves further has jumped, and says nothing about rounding."""


@dataclass(frozen=True)
class Moved:
    """The relative errors of the changed originals against the original.

    Attributes:
        errors: Those of all draws, by kind and place.
        largest: The largest error that can be rounding.
    """

    errors: dict[tuple[str, str], list[float]]
    largest: float

    def explains(self, difference: Difference) -> bool:
        """Whether rounding can make a difference.

        Most draws must move the value about as far, but not by a jump (another maximum among equal values), beside
        which a fault would look small. For values that are finite on one side only, one draw in which the same tensor
        is infinite or NaN in other places is enough: the original overflows or not, as it happens to round.
        """
        errors = self.errors.get((difference.kind, difference.place), [])
        errors = errors + [0.0] * (_DRAWS - len(errors))  # a draw that raised allows nothing
        if difference.error is None:
            return False
        if difference.error == math.inf:
            return math.inf in errors
        moved = statistics.median_low(errors)
        return moved <= _JUMP * self.largest and difference.error <= min(self.largest, _MULTIPLE * moved)


@dataclass(frozen=True)
class Rounding:
    """Runs the original of one source with changed numbers.

    Attributes:
        source: The source of the module.
        folder: Where the source is written.
        plan: The plan, whose masks the original has.
        rank: The worker.
        dtype: What the module computes in.
    """

    source: str
    folder: Path
    plan: Plan
    rank: int
    dtype: str

    def moved(self, number: int, expected: Result, original: Side, tolerance: float) -> Moved:
        """Returns how far the results of a call move.

        Args:
            number: The number of the step, a call.
            expected: What the call of the original gave.
            original: The original, after the call.
            tolerance: The plain tolerance, on which the floors and the largest error depend.
        """
        errors: dict[tuple[str, str], list[float]] = {}
        for draw in range(_DRAWS):
            instance = Instance(self.source, self.folder)
            try:
                side = Side.of_original(instance, self.plan, self.rank)
                result = self._run(side, number, torch.Generator().manual_seed(draw))
                if result is None:
                    continue
                for one in side.compared(result, expected, original, tolerance, above=-1.0):
                    if one.error is not None:
                        errors.setdefault((one.kind, one.place), []).append(one.error)
            finally:
                instance.close()
        return Moved(errors, min(_CAP[0] * tolerance, _CAP[1]))

    def _run(self, side: Side, last: int, generator: torch.Generator) -> Result | None:
        """Does the steps up to a call with changed numbers, and returns its result; None if it raises."""
        result = None
        with patch.dict(os.environ, FUZZ_FLAG="0"):  # as before the first step
            try:
                self._change(side, generator)
                for number, step in enumerate(side.instance.namespace["STEPS"][: last + 1]):
                    reseed(number + 2)
                    with moment(number, self.dtype):
                        result = side.do(step, number)
                    if step[0] == "cast":
                        self._change(side, generator)
            except Exception:
                return None
        return result

    @torch.no_grad()
    def _change(self, side: Side, generator: torch.Generator) -> None:
        """Multiplies parameters, buffers and inputs by one plus or minus a unit in the last place."""
        inputs = [one for one in pytree.tree_leaves(side.instance.variants) if isinstance(one, Tensor)]
        held = [*side.model.parameters(), *side.model.buffers(), *side.trained.values(), *inputs]
        for tensor in {id(one): one for one in held if one.is_floating_point()}.values():
            unit = torch.finfo(torch.bfloat16 if self.dtype == "autocast" else tensor.dtype).eps
            signs = torch.randint(0, 2, tensor.shape, generator=generator, device="cpu") * 2 - 1
            tensor.mul_(1 + unit * signs)
