"""The machines: how many workers on how many nodes, what connects them, how fast they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sdp_compile.errors import SDPError
from sdp_compile.runtime.comm.traffic import CollectiveKind


@dataclass(frozen=True)
class Link:
    """What a message costs on the way between two workers: ``latency`` s, then ``seconds_per_byte`` for each byte."""

    latency: float
    seconds_per_byte: float

    def __post_init__(self) -> None:
        for name in ("latency", "seconds_per_byte"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise SDPError(f"Link: {name}={value!r} must be a finite number of seconds, 0 or more.")

    @classmethod
    def of(cls, latency: float, bandwidth: float) -> Link:
        """From a latency in seconds and a bandwidth in bytes per second."""
        if not bandwidth > 0:
            raise SDPError(f"Link: bandwidth={bandwidth!r} must be a positive number of bytes per second.")
        return cls(latency, 1 / bandwidth)

    def seconds(self, nbytes: float, messages: float = 1) -> float:
        """``messages`` one after the other that carry ``nbytes`` in all."""
        return messages * self.latency + nbytes * self.seconds_per_byte


@dataclass(frozen=True)
class Cluster:
    """``nodes`` machines of ``workers_per_node`` workers; worker w is on node w // workers_per_node.

    ``intra`` connects the workers of a node, ``inter`` the nodes (the node's connection, which its workers share).
    ``flops`` is what one worker computes per second when it has a processor of its own, ``update`` the bytes of
    parameters that its optimizer updates per second. Where a node has fewer ``cores`` than workers (local processes on
    a laptop; None: each has its own), they share them: computing takes workers_per_node / cores times as long, and
    communication, which the same cores carry out, hides behind no computation.
    ``factors`` say how much longer a kind of collective takes than the model says; Gloo carries out a reduce-scatter as
    an all-reduce, for one. A measured cluster has them.
    """

    nodes: int
    workers_per_node: int
    intra: Link
    inter: Link
    flops: float
    update: float = float("inf")
    cores: int | None = None
    factors: Mapping[CollectiveKind, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("nodes", "workers_per_node", "cores"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SDPError(f"Cluster: {name}={value!r} must be at least 1.")
        for name in ("flops", "update"):
            if not getattr(self, name) > 0:
                raise SDPError(f"Cluster: {name}={getattr(self, name)!r} must be positive.")

    @property
    def workers(self) -> int:
        return self.nodes * self.workers_per_node

    @property
    def slowdown(self) -> float:
        """How much longer computing takes because workers share cores."""
        return 1.0 if self.cores is None else max(1.0, self.workers_per_node / self.cores)

    @property
    def overlaps(self) -> bool:
        """Whether communication can run beside computation: on an accelerator, or where cores are left over."""
        return self.cores is None or self.cores > self.workers_per_node

    def computing(self, flops: float) -> float:
        """Seconds that a worker takes for so many FLOPs."""
        return flops / self.flops * self.slowdown

    def updating(self, nbytes: float) -> float:
        """Seconds that a worker's optimizer takes for so many bytes of parameters."""
        return nbytes / self.update * self.slowdown

    def path(self, members: Sequence[int]) -> Link:
        """The slowest link of a ring through ``members``, in order.

        A node's connection is shared by the rings that cross it at the same time: with m of its k workers in this ring,
        the others can be in k / m rings like it.
        """
        nodes, counts = np.unique(np.asarray(members) // self.workers_per_node, return_counts=True)
        if len(nodes) == 1:
            return self.intra
        rings = self.workers_per_node / int(counts.min())
        return Link(self.inter.latency, self.inter.seconds_per_byte * rings)
