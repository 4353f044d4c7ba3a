"""What a collective costs in the alpha-beta model: so many messages after each other, so many bytes per worker.

Sources: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication Operations in MPICH" (2005), for the
ring; Sanders, Speck, Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and scan" (2009), for the
pipelined double tree, which NCCL uses for all-reduces among many nodes.
"""

from __future__ import annotations

from math import ceil, log2
from typing import Literal

from sdp_compile.runtime.traffic import CollectiveKind, sent_bytes
from sdp_compile.simulator.cluster import Link

Algorithm = Literal["ring", "tree", "best"]


def seconds(
    kind: CollectiveKind, payload: float, members: int, link: Link, algorithm: Algorithm = "best"
) -> float:  # fmt: skip
    """Time of a collective whose tensor (see `sent_bytes`) has ``payload`` bytes, among ``members`` workers.

    Only all-reduces and broadcasts have a tree; ``best`` is the faster of the two, which libraries choose by size.
    """
    if members < 2 or payload <= 0:
        return 0.0
    ring = link.seconds(sent_bytes(kind, payload, members), ring_messages(kind, members))
    if algorithm == "ring" or kind not in ("all_reduce", "broadcast"):
        return ring
    tree = tree_seconds(kind, payload, members, link)
    return tree if algorithm == "tree" else min(ring, tree)


def ring_messages(kind: CollectiveKind, members: int) -> int:
    """Messages that follow each other: once around for each half of an all-reduce."""
    return (members - 1) * (2 if kind == "all_reduce" else 1)


def tree_seconds(kind: CollectiveKind, payload: float, members: int, link: Link) -> float:
    """Up and down (or only down) a tree, pipelined in chunks: its depth in latencies, every byte once each way."""
    ways = 2 if kind == "all_reduce" else 1
    return link.seconds(ways * payload, ways * ceil(log2(members)))
