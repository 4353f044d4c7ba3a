"""The cost of a collective in the alpha-beta model: a number of sequential messages and of bytes per worker.

Sources: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH" (2005), for the
ring and for recursive halving and doubling; Sanders, Speck, Träff, "Two-tree algorithms for full bandwidth broadcast,
reduction and scan" (2009), for the pipelined trees of all-reduces and broadcasts among many nodes.
"""

from __future__ import annotations

from math import ceil, log2
from typing import Literal

from sdp_compile.runtime.comm.traffic import CollectiveKind, sent_bytes
from sdp_compile.simulator.cluster import Link

Algorithm = Literal["ring", "tree", "best"]


def seconds(kind: CollectiveKind, payload: float, members: int, link: Link, algorithm: Algorithm = "best") -> float:
    """Returns the time of a collective in seconds.

    Args:
        kind: The kind of collective.
        payload: Bytes of its tensor, as `sent_bytes` counts them.
        members: Number of workers.
        link: The slowest link between them.
        algorithm: ``"ring"``, ``"tree"``, or ``"best"`` for the faster one, as libraries choose it by size. An
            all-to-all always takes the ring.
    """
    if members < 2 or payload <= 0:
        return 0.0
    ring = ring_seconds(kind, payload, members, link)
    if algorithm == "ring" or kind == "all_to_all":
        return ring
    tree = tree_seconds(kind, payload, members, link)
    return tree if algorithm == "tree" else min(ring, tree)


def ring_seconds(kind: CollectiveKind, payload: float, members: int, link: Link) -> float:
    """Returns the time of one round of the ring, two for an all-reduce. An all-to-all sends to each member in turn."""
    return link.seconds(sent_bytes(kind, payload, members), (members - 1) * (2 if kind == "all_reduce" else 1))


def tree_seconds(kind: CollectiveKind, payload: float, members: int, link: Link) -> float:
    """Returns the time of one message per level of the tree.

    All-reduce and broadcast are pipelined: every byte goes up or down once. All-gather and reduce-scatter use recursive
    doubling and halving, and send no more bytes than a ring.
    """
    depth = ceil(log2(members))
    if kind == "all_reduce":
        return link.seconds(2 * payload, 2 * depth)
    if kind == "broadcast":
        return link.seconds(payload, depth)
    return link.seconds(sent_bytes(kind, payload, members), depth)
