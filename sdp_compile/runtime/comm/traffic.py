"""How many bytes a worker sends: counted where it hands them to a collective, not estimated from the plan."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"]


def sent_bytes(kind: CollectiveKind, payload: float, members: int) -> float:
    """The bytes that each of ``members`` sends in a collective whose tensor has ``payload`` bytes, with a ring.

    The tensor is the one that holds everybody's part: the reduced one, the gathered result, the input of a
    reduce-scatter. An all-to-all sends all of its input but this worker's own part.
    """
    share = (members - 1) / members
    return payload * (2 * share if kind == "all_reduce" else share)


@dataclass
class Traffic:
    """The bytes that this worker has sent since the last `reset`, by what they were for."""

    sent: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, kind: CollectiveKind, payload: float, members: int) -> None:
        """Counts one collective; ``what`` is "gradients", "refresh", "shards", "control", ..."""
        self.sent[what] += round(sent_bytes(kind, payload, members))
        self.calls[what] += 1

    def add_sent(self, what: str, nbytes: int) -> None:
        """Counts a collective that sends just these bytes."""
        self.sent[what] += nbytes
        self.calls[what] += 1

    @property
    def total(self) -> int:
        return sum(self.sent.values())

    def reset(self) -> None:
        """Starts counting anew."""
        self.sent.clear()
        self.calls.clear()
