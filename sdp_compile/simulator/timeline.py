"""One training step in time: computation on one stream, collectives on another, in the one global order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdp_compile.simulator.cluster import Cluster


@dataclass(frozen=True)
class Exchange:
    """A collective in backward: it can begin on a class of workers once the share ``ready`` of its backward is done.

    ``classes`` are the classes of workers that take part, ``seconds`` is what it takes.
    """

    ready: Sequence[float]
    classes: Sequence[int]
    seconds: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: computing, communicating, and how much of that no computation hides."""

    forward: float
    backward: float
    communication: float
    exposed: float
    update: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.exposed + self.update


def step_time(
    cluster: Cluster, forward: Sequence[float], backward: Sequence[float], exchanges: Sequence[Exchange],
    update: Sequence[float], after: float = 0.0,
) -> list[StepTime]:  # fmt: skip
    """The step of each class of workers, from its seconds of forward, backward and update.

    ``exchanges`` come in the order in which all workers issue them: each begins when all of its members are ready and
    have finished their previous one. ``after`` are seconds of communication that follow the update.
    """
    free = [0.0] * len(forward)
    busy = [0.0] * len(forward)
    for exchange in exchanges:
        ready = [
            forward[one] + backward[one] * (share if cluster.overlaps else 1.0)
            for one, share in zip(exchange.classes, exchange.ready, strict=True)
        ]
        begin = max(max(at, free[one]) for one, at in zip(exchange.classes, ready, strict=True))
        for one in exchange.classes:
            free[one] = begin + exchange.seconds
            busy[one] += exchange.seconds
    return [
        StepTime(
            forward[one], backward[one], busy[one] + after,
            max(0.0, free[one] - forward[one] - backward[one]) + after, update[one],
        )
        for one in range(len(forward))
    ]  # fmt: skip
