"""Medians and quartiles of what is measured several times, and ratios of turns in the same round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import quantiles

from sdp_compile.bench.race import Entry
from sdp_compile.bench.variants import COMPILED, REFERENCES


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Returns the spread of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, middle, high = quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high)


def ratios(entry: Entry, good: Mapping[str, Entry]) -> dict[str, dict[str, float]]:
    """Returns the ratios of a variant's turns to those of each reference that it met, and of its own eager form.

    Args:
        entry: The variant.
        good: All entries with figures by name.
    """
    peers = [name + COMPILED * compiled for name in REFERENCES for compiled in (False, True)]
    if entry.variant.compiled:
        peers.append(entry.variant.base)
    return {
        peer: asdict(paired_ratio(entry, good[peer]))
        for peer in dict.fromkeys(peers)
        if peer in good and _met(entry, good[peer])
    }


def paired_ratio(entry: Entry, reference: Entry) -> Spread:
    """Returns the ratios of step times of turns in the same round, so that a disturbance affects both turns."""
    reference_seconds = {(turn.wave, turn.round): turn.seconds for turn in reference.turns}
    own = [(turn.seconds, reference_seconds.get((turn.wave, turn.round))) for turn in entry.turns]
    return Spread.of([seconds / other for seconds, other in own if other])


def _met(entry: Entry, reference: Entry) -> bool:
    return not {turn.wave for turn in entry.turns}.isdisjoint(turn.wave for turn in reference.turns)
