"""The cluster to simulate: its nodes and workers, their links, and how fast they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sdp_compile.errors import SDPError
from sdp_compile.hardware import Hardware
from sdp_compile.runtime.comm.traffic import CollectiveKind


@dataclass(frozen=True)
class Link:
    """The cost of a message between two workers: ``latency`` seconds plus ``seconds_per_byte`` for each byte.

    Raises:
        SDPError: If one of the two is negative or not finite.
    """

    latency: float
    seconds_per_byte: float

    def __post_init__(self) -> None:
        for name in ("latency", "seconds_per_byte"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise SDPError(f"Link: {name} must be a finite number of seconds, at least 0, got {value!r}.")

    @classmethod
    def of(cls, latency: float, bandwidth: float) -> Link:
        """Creates a link from a latency in seconds and a bandwidth in bytes per second.

        Raises:
            SDPError: If the bandwidth is not positive, or the latency is negative or not finite.
        """
        if not bandwidth > 0:
            raise SDPError(f"Link: bandwidth must be a positive number of bytes per second, got {bandwidth!r}.")
        return cls(latency, 1 / bandwidth)

    def seconds(self, nbytes: float, messages: float = 1) -> float:
        """Returns the time of ``messages`` sequential messages that carry ``nbytes`` in total."""
        return messages * self.latency + nbytes * self.seconds_per_byte


@dataclass(frozen=True)
class Cluster:
    """A cluster of equal nodes; worker w runs on node w // workers_per_node.

    Args:
        nodes: Number of machines.
        workers_per_node: Number of workers on each.
        intra: The link between two workers of a node.
        inter: The link between two nodes, shared by the workers of a node.
        flops: FLOPs per second of a worker that has a processor to itself.
        update: Bytes of parameters that a worker's optimizer updates per second.
        copy: Bytes that a worker copies per second into new memory of its own, as it packs and unpacks what it
            exchanges.
        cores: CPU cores per node; None if each worker has its own processor. If a node has fewer cores than workers
            (local processes on a laptop), computing takes workers_per_node / cores times as long. Without a spare core,
            communication does not overlap with computation, because it runs on the same cores.
        factors: How many times longer than modelled each kind of collective takes. A measured cluster sets them: Gloo,
            for example, runs a reduce-scatter as an all-reduce.

    Raises:
        SDPError: If a number is out of range.
    """

    nodes: int
    workers_per_node: int
    intra: Link
    inter: Link
    flops: float
    update: float = float("inf")
    copy: float = float("inf")
    cores: int | None = None
    factors: Mapping[CollectiveKind, float] = field(default_factory=dict)

    @classmethod
    def of(cls, hardware: Hardware, workers: int) -> Cluster:
        """Returns the cluster of a number of workers, which the nodes of ``hardware`` must divide."""
        return cls(
            hardware.nodes,
            workers // hardware.nodes,
            Link.of(hardware.intra_latency * 1e-6, hardware.intra_bandwidth * 1e9),
            Link.of(hardware.inter_latency * 1e-6, hardware.inter_bandwidth * 1e9),
            hardware.tflops * 1e12,
            hardware.update * 1e9,
            hardware.copy * 1e9,
            hardware.cores,
        )

    def __post_init__(self) -> None:
        for name in ("nodes", "workers_per_node", "cores"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SDPError(f"Cluster: {name} must be at least 1, got {value!r}.")
        for name in ("flops", "update", "copy"):
            if not getattr(self, name) > 0:
                raise SDPError(f"Cluster: {name} must be positive, got {getattr(self, name)!r}.")

    @property
    def workers(self) -> int:
        """Number of workers on all nodes."""
        return self.nodes * self.workers_per_node

    @property
    def slowdown(self) -> float:
        """How many times longer computing takes because workers share cores."""
        return 1.0 if self.cores is None else max(1.0, self.workers_per_node / self.cores)

    @property
    def overlaps(self) -> bool:
        """Whether communication overlaps with computation: on accelerators, and on CPUs with spare cores."""
        return self.cores is None or self.cores > self.workers_per_node

    def computing(self, flops: float) -> float:
        """Returns the seconds that a worker needs to compute ``flops`` FLOPs."""
        return flops / self.flops * self.slowdown

    def updating(self, nbytes: float) -> float:
        """Returns the seconds that a worker's optimizer needs to update ``nbytes`` bytes of parameters."""
        return nbytes / self.update * self.slowdown

    def copying(self, nbytes: float) -> float:
        """Returns the seconds that a worker needs to copy ``nbytes`` bytes in its memory."""
        return nbytes / self.copy * self.slowdown

    def path(self, members: Sequence[int]) -> Link:
        """Returns the slowest link of a ring through ``members``, in order.

        The rings that cross a node's link at the same time share its bandwidth. If m of the k workers of a node are in
        this ring, up to k / m such rings can be active.
        """
        nodes, counts = np.unique(np.asarray(members) // self.workers_per_node, return_counts=True)
        if len(nodes) == 1:
            return self.intra
        rings = self.workers_per_node / int(counts.min())
        return Link(self.inter.latency, self.inter.seconds_per_byte * rings)
