"""One training step in time: computation on one stream, collectives on another, in the one global order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdp_compile.runtime.comm.traffic import CollectiveKind, sent_bytes


@dataclass(frozen=True)
class Exchange:
    """A collective of ``payload`` bytes (as `sent_bytes` takes them) among ``members`` workers that takes ``seconds``.

    ``classes`` are the classes of workers that take part. In backward it can begin once the share ``ready`` of the
    worker's backward is done.
    """

    kind: CollectiveKind
    payload: float
    members: int
    classes: Sequence[int]
    seconds: float
    ready: float = 1.0

    @property
    def sent(self) -> float:
        """Bytes that each member sends."""
        return sent_bytes(self.kind, self.payload, self.members)


@dataclass(frozen=True)
class Work:
    """Seconds that a worker computes in one step."""

    forward: float
    backward: float
    update: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.update


def step_ends(
    work: Sequence[Work], during: Sequence[Exchange], after: Sequence[Exchange] = (), *, overlaps: bool = True
) -> list[float]:
    """When each class of workers ends its step, in seconds after they all began.

    Both sequences are in the order in which every worker issues them; each collective begins when all of its members
    are ready and have finished their previous one. Those ``during`` backward need the gradients (without ``overlaps``
    all of them) and come before the update, those ``after`` it need the updated values.
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
