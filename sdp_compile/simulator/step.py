"""The result of a simulated step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """A predicted training step. All times are in seconds.

    Attributes:
        name: The strategy.
        seconds: Time of the slowest worker: forward + backward + exposed + update.
        communication: Time of all collectives of the worker that sends most.
        exposed: Communication time that does not overlap with computation.
        sent: Bytes sent by the worker that sends most.
        collectives: Number of its collectives.
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
        """Returns the fields as a dict, ready for JSON."""
        return asdict(self)
