"""The result of a simulated step."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Bound = Literal["compute", "bytes", "latency"]


@dataclass(frozen=True)
class Prediction:
    """A predicted training step. All times are in seconds.

    Attributes:
        name: The strategy.
        seconds: Time of the slowest worker: forward + backward + exposed + update.
        communication: Time of all collectives of a worker, each alone on its link.
        exposed: Communication time that does not overlap with computation.
        sent: Bytes sent by the worker that sends most.
        collectives: Number of a worker's collectives.
        transfer: Time for which the busiest link is busy.
        latency: Time that the messages of the busiest stream of collectives wait for each other.
        bucket_bytes: Size of a bucket; 0 if there are none.
        state: Bytes of parameters, gradients and AdamW state of the worker that holds most.
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
    transfer: float
    latency: float
    bucket_bytes: int
    state: float

    @property
    def bound(self) -> Bound:
        """What takes the most time, whether or not it is hidden: no step is shorter than any of the three."""
        times: dict[Bound, float] = {
            "compute": self.forward + self.backward + self.update,
            "bytes": self.transfer,
            "latency": self.latency,
        }
        return max(times, key=lambda name: times[name])

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a dict, ready for JSON."""
        return {**asdict(self), "bound": self.bound}
