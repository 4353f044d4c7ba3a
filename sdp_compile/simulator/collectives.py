"""The cost of a collective in the alpha-beta model: sequential messages, and bytes on the busiest link.

Sources: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH" (2005), for the
ring and for recursive halving and doubling; Sanders, Speck, Träff, "Two-tree algorithms for full bandwidth broadcast,
reduction and scan" (2009), for the pipelined trees of all-reduces and broadcasts among many nodes; Jeaugey, "PAT: a new
algorithm for all-gather and reduce-scatter operations at scale" (arXiv 2506.20252), for NCCL's trees of the other two.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2
from typing import Literal

from sdp_compile.runtime.comm.traffic import CollectiveKind, sent_bytes
from sdp_compile.simulator.cluster import Cluster, Link

Algorithm = Literal["ring", "tree", "best"]

MESSAGES_AT_ONCE = 8
"""Messages of an all-to-all that a worker has under way at the same time; NCCL batches its sends and receives by 8."""


@dataclass(frozen=True)
class Cost:
    """The cost of a collective that has its link to itself.

    Attributes:
        latency: Seconds of the messages that wait for each other.
        transfer: Seconds that the bytes take on the busiest link.
        crosses: Whether that link is one between nodes.
    """

    latency: float = 0.0
    transfer: float = 0.0
    crosses: bool = False

    @property
    def seconds(self) -> float:
        """Latency and transfer together."""
        return self.latency + self.transfer

    def times(self, factor: float) -> Cost:
        """Returns the cost of a collective that takes ``factor`` times as long."""
        return Cost(self.latency * factor, self.transfer * factor, self.crosses)


def cost(
    kind: CollectiveKind,
    payload: float,
    members: int,
    link: Link,
    algorithm: Algorithm = "best",
    crosses: bool = False,
) -> Cost:
    """Returns the cost of a collective whose members are all connected by one kind of link.

    Args:
        kind: The kind of collective.
        payload: Bytes of its tensor, as `sent_bytes` counts them.
        members: Number of workers.
        link: The link between them.
        algorithm: ``"ring"``, ``"tree"``, or ``"best"`` for the faster one, as libraries choose it by size.
        crosses: Whether the link is one between nodes.
    """
    if members < 2 or payload <= 0:
        return Cost()
    ring = Cost(_ring_messages(kind, members) * link.latency, _ring_bytes(kind, payload, members, link), crosses)
    if algorithm == "ring":
        return ring
    messages, nbytes = _tree(kind, payload, members)
    tree = Cost(messages * link.latency, nbytes * link.seconds_per_byte, crosses)
    return tree if algorithm == "tree" else min(ring, tree, key=lambda one: one.seconds)


def seconds(kind: CollectiveKind, payload: float, members: int, link: Link, algorithm: Algorithm = "best") -> float:
    """Returns the seconds of `cost`."""
    return cost(kind, payload, members, link, algorithm).seconds


def among_all(kind: CollectiveKind, payload: float, cluster: Cluster, algorithm: Algorithm = "best") -> Cost:
    """Returns the cost of a collective among all workers, which DDP and FSDP2 use, the faster of two ways.

    One is a ring through all workers, node after node. The other is hierarchical, as NCCL's trees are: a reduce-scatter
    in each node, an all-reduce among nodes in which each worker of a node has a part, and an all-gather in each node.
    Its stages are pipelined in chunks without loss, so the busiest link decides. Nothing is reduced inside switches.
    """
    everyone = cost(kind, payload, cluster.workers, cluster.intra, algorithm)
    if cluster.nodes == 1:
        return everyone
    ways = [_ring_through_nodes(kind, payload, cluster)]
    if kind != "all_to_all" and cluster.workers_per_node > 1:
        ways.append(_by_node(kind, payload, cluster, algorithm))
    elif cluster.workers_per_node == 1:
        ways.append(cost(kind, payload, cluster.nodes, cluster.inter, algorithm, crosses=True))
    return min(ways, key=lambda one: one.seconds)


def ring_seconds(kind: CollectiveKind, payload: float, members: int, link: Link) -> float:
    """Returns the time of one round of the ring, two for an all-reduce. An all-to-all sends to each member in turn."""
    return _ring_messages(kind, members) * link.latency + _ring_bytes(kind, payload, members, link)


def _ring_messages(kind: CollectiveKind, members: int) -> int:
    return (members - 1) * (2 if kind == "all_reduce" else 1)


def _ring_bytes(kind: CollectiveKind, payload: float, members: int, link: Link) -> float:
    return sent_bytes(kind, payload, members) * link.seconds_per_byte


def _tree(kind: CollectiveKind, payload: float, members: int) -> tuple[int, float]:
    """Returns sequential messages and bytes.

    All-reduce and broadcast are pipelined: every byte goes up or down once. All-gather and reduce-scatter use recursive
    doubling and halving, and send no more bytes than a ring. The messages of an all-to-all do not wait for each other.
    """
    depth = ceil(log2(members))
    if kind == "all_reduce":
        return 2 * depth, 2 * payload
    if kind == "broadcast":
        return depth, payload
    if kind == "all_to_all":
        return ceil((members - 1) / MESSAGES_AT_ONCE), sent_bytes(kind, payload, members)
    return depth, sent_bytes(kind, payload, members)


def _ring_through_nodes(kind: CollectiveKind, payload: float, cluster: Cluster) -> Cost:
    """One ring (NCCL runs some side by side): of the messages that wait for each other, few leave a node."""
    rounds = 2 if kind == "all_reduce" else 1
    outside = rounds * (cluster.workers - 1 if kind == "all_to_all" else cluster.nodes)
    inside = max(0, _ring_messages(kind, cluster.workers) - outside)
    latency = inside * cluster.intra.latency + outside * cluster.inter.latency
    slowest = max(cluster.intra.seconds_per_byte, cluster.inter.seconds_per_byte)
    return Cost(latency, sent_bytes(kind, payload, cluster.workers) * slowest, crosses=True)


def _by_node(kind: CollectiveKind, payload: float, cluster: Cluster, algorithm: Algorithm) -> Cost:
    inside: tuple[CollectiveKind, ...] = ("reduce_scatter", "all_gather") if kind == "all_reduce" else (kind,)
    stages = [cost(one, payload, cluster.workers_per_node, cluster.intra, algorithm) for one in inside]
    # Each worker of a node has its part; together they send what one worker with the whole payload would send.
    outside = cost(kind, payload, cluster.nodes, cluster.inter, algorithm, crosses=True)
    latency = outside.latency + sum(stage.latency for stage in stages)
    within = sum(stage.transfer for stage in stages)
    return Cost(latency, max(within, outside.transfer), crosses=outside.transfer >= within)
