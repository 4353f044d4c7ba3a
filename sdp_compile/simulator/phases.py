"""The steps of a schedule and its changes of plan, predicted from the plans of its phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np

from sdp_compile.planning.moves import Traffic
from sdp_compile.planning.phases import PlannedPart
from sdp_compile.policies.parts import Part
from sdp_compile.runtime.comm.transfer import CHUNK_BYTES
from sdp_compile.simulator.cluster import Cluster
from sdp_compile.simulator.collectives import Algorithm, cost
from sdp_compile.simulator.simulate import simulate
from sdp_compile.simulator.step import Prediction

CHANGES = (
    "A change of plan costs what is sent, in all-to-alls that nothing hides, and what is copied. Planning and lowering "
    "are the host's, and not predicted.",
)
"""What the prediction of a change of plan stands on."""


@dataclass(frozen=True)
class ChangePrediction:
    """A predicted change of plan with AdamW.

    Attributes:
        seconds: Time of sending and copying.
        sent: Bytes sent by the worker that sends most.
        received: Bytes received by the worker that receives most.
        total: Bytes sent by all workers.
        crossing: Bytes of them that leave a node.
    """

    seconds: float
    sent: int
    received: int
    total: int
    crossing: int


@dataclass(frozen=True)
class PartPrediction:
    """A part of a schedule: its step, and the change of plan with which it begins; None for the first part."""

    part: Part
    step: Prediction
    change: ChangePrediction | None


@dataclass(frozen=True)
class SchedulePrediction:
    """The predicted parts of a schedule, in the order of their steps."""

    parts: tuple[PartPrediction, ...]

    @property
    def step_seconds(self) -> float:
        """The mean step, each part by its share of all steps, without changes of plan."""
        return sum(one.part.share * one.step.seconds for one in self.parts)

    @property
    def changing_seconds(self) -> float:
        """The mean time per step of the changes that recur: owners that are drawn again, and alternates."""
        return sum(one.part.rate * one.change.seconds for one in self.parts if one.change is not None)

    @property
    def once_seconds(self) -> float:
        """The time of the changes that happen once, in all: where phases begin."""
        return sum(one.change.seconds for one in self.parts if one.change is not None and not one.part.rate)

    def to_dict(self) -> dict[str, Any]:
        """Returns the prediction as a dict, ready for JSON."""
        return {
            "step_seconds": self.step_seconds,
            "changing_seconds": self.changing_seconds,
            "once_seconds": self.once_seconds,
            "parts": [
                {
                    "phase": one.part.phase,
                    "kind": one.part.kind,
                    "policy": one.part.policy.describe(),
                    "share": one.part.share,
                    "rate": one.part.rate,
                    "predicted": one.step.to_dict(),
                    "change": None if one.change is None else asdict(one.change),
                }
                for one in self.parts
            ],
        }


def simulate_schedule(
    parts: Sequence[PlannedPart], cluster: Cluster, *, bucket_bytes: int | None = None, algorithm: Algorithm = "best"
) -> SchedulePrediction:
    """Predicts the steps and the changes of plan of a schedule.

    Args:
        parts: The plans of the schedule, for the nodes of the cluster.
        cluster: The cluster.
        bucket_bytes: Size of a gradient bucket; None for the best one of each plan.
        algorithm: Collective algorithm; ``"best"`` takes the faster one.

    Raises:
        SDPError: If the cluster and the plans have different numbers of workers.
    """
    steps: dict[int, Prediction] = {}
    result = []
    for one in parts:
        if id(one.plan) not in steps:
            steps[id(one.plan)] = simulate(one.plan, cluster, bucket_bytes=bucket_bytes, algorithm=algorithm)
        change = None if one.moves is None else predict_change(one.moves, cluster, algorithm)
        result.append(PartPrediction(one.part, steps[id(one.plan)], change))
    return SchedulePrediction(tuple(result))


def predict_change(moves: Traffic, cluster: Cluster, algorithm: Algorithm = "best") -> ChangePrediction:
    """Predicts a change of plan.

    The worker or node with most to send or to receive decides. What is sent is packed into one tensor, and what is
    received is unpacked: each is copied twice. All that a worker holds afterwards is written once.

    Args:
        moves: What the workers send each other.
        cluster: The cluster.
        algorithm: Collective algorithm.
    """
    workers, nodes = cluster.workers, cluster.nodes
    by_node = moves.nbytes.reshape(nodes, cluster.workers_per_node, nodes, cluster.workers_per_node).sum((1, 3))
    leaving = by_node - np.diag(np.diag(by_node))
    sent, received = moves.nbytes.sum(1), moves.nbytes.sum(0)
    most = int(max(sent.max(), received.max()))
    lots = ceil(most / CHUNK_BYTES)
    whole = workers / max(workers - 1, 1)  # `cost` takes the bytes for all members, of which one's own part stays
    ways = [cost("all_to_all", most * whole, workers, cluster.intra, algorithm)]
    if busiest := int(max(leaving.sum(0).max(), leaving.sum(1).max())):
        ways.append(cost("all_to_all", busiest * whole, workers, cluster.inter, algorithm, crosses=True))
    way = max(ways, key=lambda one: one.latency * lots + one.transfer)
    travelling = (way.latency * lots + way.transfer) * cluster.factors.get("all_to_all", 1.0)
    copied = 2 * float((sent + received).max()) + moves.held / workers
    return ChangePrediction(
        travelling + cluster.copying(copied), int(sent.max()), int(received.max()), moves.total, int(leaving.sum())
    )
