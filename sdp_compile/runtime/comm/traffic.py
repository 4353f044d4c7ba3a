"""Counts the bytes that a worker sends, where it hands them to a collective; nothing is estimated from the plan."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Literal

CollectiveKind = Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all"]


def sent_bytes(kind: CollectiveKind, payload: float, members: int) -> float:
    """Returns the bytes that each member sends in a ring collective.

    Args:
        kind: The collective.
        payload: Bytes of the tensor that holds the parts of all members: the reduced tensor, the gathered result, or
            the input of a reduce-scatter or an all-to-all.
        members: The number of members.
    """
    share = (members - 1) / members
    return payload * (2 * share if kind == "all_reduce" else share)


@dataclass
class Traffic:
    """What this worker has sent since the last `reset`, by purpose.

    Attributes:
        sent: Bytes.
        calls: Collectives.
        seconds: Processor time of what the host computes for them, where it is measured.
    """

    sent: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, what: str, kind: CollectiveKind, payload: float, members: int) -> None:
        """Counts one ring collective; ``what`` is its purpose: "gradients", "refresh", "shards", "control", ..."""
        self.sent[what] += round(sent_bytes(kind, payload, members))
        self.calls[what] += 1

    def add_sent(self, what: str, nbytes: int) -> None:
        """Counts a collective in which this worker sends ``nbytes`` bytes."""
        self.sent[what] += nbytes
        self.calls[what] += 1

    @property
    def total(self) -> int:
        """All bytes sent."""
        return sum(self.sent.values())

    def reset(self) -> None:
        """Sets all counts to zero."""
        self.sent.clear()
        self.calls.clear()
        self.seconds.clear()
