"""What a simulated step comes to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """One way to train, of the worker that takes longest (``seconds`` and its parts) or sends most (``sent`` bytes).

    ``communication`` is the time of all collectives, ``exposed`` what of it no computation hides; ``collectives`` their
    number. ``seconds`` = forward + backward + exposed + update.
    """

    name: str
    workers: int
    seconds: float
    forward: float
    backward: float
    communication: float
    exposed: float
    update: float
    sent: float
    collectives: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
