"""A training step of data parallelism and of FSDP2, whose collectives are among all workers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from sdp_compile.runtime.comm.traffic import CollectiveKind, sent_bytes
from sdp_compile.simulator.cluster import Cluster
from sdp_compile.simulator.collectives import Algorithm, Cost, among_all
from sdp_compile.simulator.readiness import Readiness
from sdp_compile.simulator.timeline import Operation, run

FIRST_DDP_BUCKET = 2**20
"""Bytes of DistributedDataParallel's first bucket, which is small so that communication begins early."""

DDP_BUCKET = 25 * 2**20
"""Bytes of its other buckets."""

_BLOCK = re.compile(r"(.*?\.\d+)\.")
_COMPUTING, _SENDING = "computing", "sending"


@dataclass
class Peer:
    """A step in the making: its operations, and what they send.

    Args:
        cluster: The cluster.
        algorithm: The algorithm of all collectives.
    """

    cluster: Cluster
    algorithm: Algorithm
    operations: list[Operation] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    sent: float = 0.0

    @property
    def end(self) -> float:
        """When the last operation ends."""
        return max(run(self.operations), default=0.0)

    def compute(self, seconds: float, after: Sequence[int | None] = ()) -> int:
        """Adds computation after the operations with these numbers, and returns its number."""
        return self._add(Operation(_COMPUTING, seconds, after=tuple(number for number in after if number is not None)))

    def send(self, kind: CollectiveKind, payload: float, ready: float = 0.0, after: Sequence[int | None] = ()) -> int:
        """Adds a collective among all workers, which take turns, and returns its number."""
        cost = among_all(kind, payload, self.cluster, self.algorithm).times(self.cluster.factors.get(kind, 1.0))
        self.costs.append(cost)
        self.sent += sent_bytes(kind, payload, self.cluster.workers)
        numbers = tuple(number for number in after if number is not None)
        return self._add(Operation(_SENDING, cost.latency, cost.transfer, cost.crosses, ready, numbers))

    def _add(self, operation: Operation) -> int:
        self.operations.append(operation)
        return len(self.operations) - 1


def ddp(peer: Peer, readiness: Readiness, forward: float, backward: float, bucket_bytes: int | None) -> None:
    """Adds a step of DistributedDataParallel: an all-reduce per bucket of gradients, in the order of backward.

    Args:
        peer: What to add to.
        readiness: When gradients are ready.
        forward: Seconds that a worker computes in forward.
        backward: Seconds in backward.
        bucket_bytes: Bytes of a bucket; None for the library's own.
    """
    peer.compute(forward + backward)
    state, filled = readiness.plan.state, 0
    cap = FIRST_DDP_BUCKET if bucket_bytes is None else min(FIRST_DDP_BUCKET, bucket_bytes)
    for name in reversed(readiness.order):
        filled += state[name].nbytes
        if filled >= cap or name == readiness.order[0]:
            share = readiness.shares[name] if peer.cluster.overlaps else 1.0
            peer.send("all_reduce", filled, forward + backward * share)
            filled, cap = 0, DDP_BUCKET if bucket_bytes is None else bucket_bytes


def fsdp2(peer: Peer, readiness: Readiness, forward: float, backward: float) -> None:
    """Adds a step of FSDP2, which gathers parameters and reduce-scatters gradients block by block.

    With overlap, the next block is gathered while one computes (FSDP2 prefetches one block), and gradients are
    reduce-scattered while the next block computes. The root, with all parameters outside of blocks, is gathered once,
    blocks once for forward and once for backward. What is gathered is copied into its parameters, and gradients are
    copied to where they are sent from.

    Args:
        peer: What to add to.
        readiness: The order of parameters.
        forward: Seconds that a worker computes in forward; units share them in proportion to their bytes.
        backward: Seconds in backward, likewise.
    """
    units = units_of(readiness)
    total, behind = sum(units.values()) or 1, 2 if peer.cluster.overlaps else 1
    computed: list[int | None] = [None, None]
    for nbytes in units.values():
        gathered = peer.send("all_gather", nbytes, after=[computed[-behind]])
        unpacking = peer.cluster.copying(nbytes)
        computed.append(peer.compute(forward * nbytes / total + unpacking, [gathered]))
    backwards = list(reversed(units.items()))
    gathers = [name for name, _ in backwards if name]
    gathered_again: dict[str, int] = {}

    def gather(after: int | None) -> None:
        if gathers:
            name = gathers.pop(0)
            gathered_again[name] = peer.send("all_gather", units[name], after=[after])

    gather(computed[-behind])
    for name, nbytes in backwards:
        before = computed[-1]
        if peer.cluster.overlaps:
            gather(before)  # the next one, while this one computes
        copying = peer.cluster.copying(2 * nbytes if name in gathered_again else nbytes)
        computed.append(peer.compute(backward * nbytes / total + copying, [gathered_again.get(name), before]))
        scattered = peer.send("reduce_scatter", nbytes, after=[computed[-1]])
        if not peer.cluster.overlaps:
            computed[-1] = scattered
            gather(scattered)


def units_of(readiness: Readiness) -> dict[str, int]:
    """Returns the bytes of what `fully_shard` wraps: of the root ``""`` and of the blocks, in the order of forward.

    A parameter's block is its name up to the first number, as in ``layers.0``.
    """
    sizes = {"": 0}
    for name in readiness.order:
        match = _BLOCK.match(name)
        unit = match[1] if match else ""
        sizes[unit] = sizes.get(unit, 0) + readiness.plan.state[name].nbytes
    return {name: nbytes for name, nbytes in sizes.items() if nbytes}
