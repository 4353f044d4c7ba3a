"""What a collective costs in the alpha-beta model: so many messages after each other, so many bytes per worker.

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
    """Time of a collective whose tensor (see `sent_bytes`) has ``payload`` bytes, among ``members`` workers.

    ``best`` is the faster of ring and tree; libraries choose by size alike. An all-to-all has no tree.
    """
    if members < 2 or payload <= 0:
        return 0.0
    ring = ring_seconds(kind, payload, members, link)
    if algorithm == "ring" or kind == "all_to_all":
        return ring
    tree = tree_seconds(kind, payload, members, link)
    return tree if algorithm == "tree" else min(ring, tree)


def ring_seconds(kind: CollectiveKind, payload: float, members: int, link: Link) -> float:
    """Once around the ring, twice for an all-reduce; an all-to-all sends to each of the others in turn."""
    return link.seconds(sent_bytes(kind, payload, members), (members - 1) * (2 if kind == "all_reduce" else 1))


def tree_seconds(kind: CollectiveKind, payload: float, members: int, link: Link) -> float:
    """As many messages after each other as the tree is deep.

    All-reduce and broadcast are pipelined, every byte goes once up or down; all-gather and reduce-scatter double and
    halve what they hold, and send no more than a ring.
    """
    depth = ceil(log2(members))
    if kind == "all_reduce":
        return link.seconds(2 * payload, 2 * depth)
    if kind == "broadcast":
        return link.seconds(payload, depth)
    return link.seconds(sent_bytes(kind, payload, members), depth)
