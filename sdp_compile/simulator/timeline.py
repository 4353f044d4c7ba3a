"""The timeline of a training step: computation on one stream, collectives on another, in global order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdp_compile.runtime.comm.traffic import CollectiveKind, sent_bytes


@dataclass(frozen=True)
class Exchange:
    """A collective of a training step.

    Attributes:
        kind: The kind of collective.
        payload: Bytes of its tensor, as `sent_bytes` counts them.
        members: Number of workers that take part.
        classes: Indices of their classes.
        seconds: Its duration.
        ready: The share of a worker's backward after which it can begin.
    """

    kind: CollectiveKind
    payload: float
    members: int
    classes: Sequence[int]
    seconds: float
    ready: float = 1.0

    @property
    def sent(self) -> float:
        """Bytes sent by each member."""
        return sent_bytes(self.kind, self.payload, self.members)


@dataclass(frozen=True)
class Work:
    """Seconds of computation of a worker in one step."""

    forward: float
    backward: float
    update: float

    @property
    def total(self) -> float:
        """Seconds of forward, backward and update."""
        return self.forward + self.backward + self.update


def step_ends(
    work: Sequence[Work], during: Sequence[Exchange], after: Sequence[Exchange] = (), *, overlaps: bool = True
) -> list[float]:
    """Returns when each class of workers ends its step, in seconds after its start.

    A collective begins once all of its members are ready and have finished their previous one.

    Args:
        work: The computation of each class.
        during: Collectives of gradients, in the order in which all workers issue them. They precede the update.
        after: Collectives of updated values, likewise. They follow the update.
        overlaps: Whether collectives run during backward; if not, they wait until it ends.
    """
    free = [0.0] * len(work)
    for exchange in during:
        share = exchange.ready if overlaps else 1.0
        _run(exchange, free, [one.forward + one.backward * share for one in work])
    updated = [max(free[of], one.forward + one.backward) + one.update for of, one in enumerate(work)]
    for exchange in after:
        _run(exchange, free, updated)
    return [max(pair) for pair in zip(free, updated, strict=True)]


def _run(exchange: Exchange, free: list[float], ready: Sequence[float]) -> None:
    end = max(max(ready[one], free[one]) for one in exchange.classes) + exchange.seconds
    for one in exchange.classes:
        free[one] = end
