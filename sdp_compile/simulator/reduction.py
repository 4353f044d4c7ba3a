"""What the workers of a plan send: rounds of gradients that travel level by level, and the refresh of values.

A round of gradients goes through the levels of the plan. At a class level the members of a group, who own the same, end
with one part of it each (a reduce-scatter). At the exchange level the owners of each part in the group split it evenly
(an all-to-all). Averages come back in the opposite order (an all-to-all, all-gathers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from sdp_compile.ownership.levels import Level
from sdp_compile.ownership.owners import OwnerSets, is_member
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.comm.traffic import CollectiveKind, sent_bytes
from sdp_compile.simulator.cluster import Cluster, Link
from sdp_compile.simulator.collectives import Algorithm, Cost, cost

ByClass = NDArray[np.float64]
"""A figure per class of workers."""


@dataclass(frozen=True, eq=False)
class Phase:
    """A collective of one round: all groups of a level run it side by side.

    Attributes:
        level: The number of the level.
        kind: The kind of collective.
        cost: Its cost for the class that sends most.
        sent: The bytes that a worker of each class sends.
    """

    level: int
    kind: CollectiveKind
    cost: Cost
    sent: ByClass


class Reduction:
    """The collectives of one plan on one cluster.

    Args:
        plan: The plan.
        cluster: The cluster.
        algorithm: The algorithm of all collectives.
        bucket_bytes: The most that a worker holds of a round.
        shares: For each trainable parameter, the share of backward after which its gradient is ready.

    Attributes:
        classes: The workers, grouped by what they own.
        ready: For each round, the share of backward after which its gradients are ready.
    """

    def __init__(
        self, plan: Plan, cluster: Cluster, algorithm: Algorithm, bucket_bytes: int, shares: Mapping[str, float]
    ) -> None:
        self.plan, self.cluster, self.algorithm, self.bucket_bytes = plan, cluster, algorithm, bucket_bytes
        self.classes, self.ready = plan.worker_classes(), list[float]()
        known, rounds, fetched = OwnerSets(), list[dict[int, float]](), dict[int, float]()
        for bucket in plan.buckets(None, bucket_bytes):
            if bucket.round == len(rounds):
                rounds.append({})
                self.ready.append(0.0)
            _add(rounds[-1], known.number(bucket.owners), bucket.nbytes)
            self.ready[-1] = max(self.ready[-1], *(shares[piece.name] for piece in bucket.pieces))
        for piece in plan.refreshed:
            _add(fetched, known.number(piece.owners), piece.numel * plan.state[piece.name].dtype.itemsize)
        self._rounds = [_vector(of_round, len(known.sets)) for of_round in rounds]
        self._fetched = _vector(fetched, len(known.sets))
        # holds[s, c]: whether class c owns what the owner set s owns.
        holds = [[is_member(workers[0], owners) for workers in self.classes] for owners in known.sets]
        self._holds = np.array(holds, dtype=np.float64).reshape(len(known.sets), len(self.classes))
        self._members = [
            np.array([len(level.members(owners[0], owners)) for owners in known.sets]) for level in plan.levels
        ]
        self._paths = [_slowest_path(level, cluster) for level in plan.levels]
        self._nearby = [_fewest_on_a_node(level, cluster) for level in plan.levels]

    def there(self) -> list[list[Phase]]:
        """Returns the phases of each round after which each owner has the sum of one part of the gradients."""
        return [self._there(nbytes) for nbytes in self._rounds]

    def back(self) -> list[list[Phase]]:
        """Returns the phases of each round in which averages, or values of shards, return to all owners."""
        return [[self._back(phase) for phase in reversed(phases)] for phases in self.there()]

    def both(self) -> list[list[Phase]]:
        """Returns the phases of each round there and back. A last class level makes one all-reduce of both."""
        rounds = []
        for there, back in zip(self.there(), self.back(), strict=True):
            if there[-1].kind == "reduce_scatter":
                size = self.plan.levels[there[-1].level].size
                turn = self._within_class(there[-1].level, "all_reduce", there[-1].sent * (size / (size - 1)))
                rounds.append([*there[:-1], turn, *back[1:]])
            else:
                rounds.append([*there, *back])
        return rounds

    def refresh(self) -> list[Phase]:
        """Returns the collectives in which workers fetch values that they do not own, under backward masking, in order.

        Workers fetch them from the other classes of their exchange group. Where a node's workers are of one class and
        that group leaves the node, each fetches a share, and the node gathers the shares.
        """
        exchange = next((number for number, level in enumerate(self.plan.levels) if level.kind == "exchange"), None)
        missing: ByClass = self._fetched @ (1 - self._holds)
        if exchange is None or not missing.any():
            return []
        size, members = self.plan.levels[exchange].size, self._members[exchange]
        shares = len(self.plan.levels.sharers(0))
        sent: ByClass = (self._fetched * (size - members) / members) @ self._holds / shares
        lots = ceil(float(self._fetched.sum()) / self.bucket_bytes)
        phases = [self._all_to_all(exchange, sent / lots, missing / shares / lots)]
        if shares > 1:
            phases.append(self._within_class(0, "all_gather", missing / lots))
        return phases * lots

    def _there(self, nbytes: ByClass) -> list[Phase]:
        phases = list[Phase]()
        for number, level in enumerate(self.plan.levels):
            if level.kind == "class":
                phases.append(self._within_class(number, "reduce_scatter", nbytes @ self._holds))
                nbytes = nbytes / level.size
            else:
                sent: ByClass = (nbytes * (1 - 1 / self._members[number])) @ self._holds
                phases.append(self._all_to_all(number, sent, sent))
                nbytes = nbytes / self._members[number]
        return phases

    def _back(self, phase: Phase) -> Phase:
        if phase.kind == "all_to_all":
            return phase
        size = self.plan.levels[phase.level].size
        return self._within_class(phase.level, "all_gather", phase.sent * (size / (size - 1)))

    def _within_class(self, number: int, kind: CollectiveKind, payload: ByClass) -> Phase:
        size = self.plan.levels[number].size
        path = self._paths[number]
        paid = cost(kind, float(payload.max()), size, path, self.algorithm, path != self.cluster.intra)
        sent = np.array([sent_bytes(kind, nbytes, size) for nbytes in payload.tolist()])
        return Phase(number, kind, paid.times(self.cluster.factors.get(kind, 1.0)), sent)

    def _all_to_all(self, number: int, sent: ByClass, received: ByClass) -> Phase:
        """An all-to-all takes as long as the worker that sends or receives most; one of nothing is left out."""
        size, cluster, most = self.plan.levels[number].size, self.cluster, float(max(sent.max(), received.max()))
        if not most:
            return Phase(number, "all_to_all", Cost(), sent)
        # `cost` takes the bytes for all members, of which those for the worker itself stay.
        inside = cost("all_to_all", most * size / (size - 1), size, cluster.intra, self.algorithm)
        paid = inside
        if (nearby := self._nearby[number]) < size:
            shared = Link(cluster.inter.latency, cluster.inter.seconds_per_byte * cluster.workers_per_node)
            leaving = most * (size - nearby) / (size - 1)
            paid = cost("all_to_all", leaving * size / (size - 1), size, shared, self.algorithm, crosses=True)
            paid = max(paid, inside, key=lambda one: one.seconds)
        return Phase(number, "all_to_all", paid.times(cluster.factors.get("all_to_all", 1.0)), sent)


def _slowest_path(level: Level, cluster: Cluster) -> Link:
    """Returns the slowest link of the groups of a level."""
    return max(map(cluster.path, level.groups), key=lambda link: (link.seconds_per_byte, link.latency))


def _fewest_on_a_node(level: Level, cluster: Cluster) -> int:
    """Returns how many workers of a group are on one node, where they are fewest."""
    nodes = np.array(level.groups) // cluster.workers_per_node
    return min(int(np.unique(group, return_counts=True)[1].min()) for group in nodes)


def _add(to: dict[int, float], number: int, nbytes: float) -> None:
    to[number] = to.get(number, 0.0) + nbytes


def _vector(nbytes: Mapping[int, float], length: int) -> NDArray[np.float64]:
    """Returns the bytes of each owner set."""
    result = np.zeros(length)
    for number, value in nbytes.items():
        result[number] = value
    return result
