"""The collectives of a training step with SDP or DDP, with their payloads and times."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from sdp_compile.ownership.owners import OwnerSet, is_member
from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.comm.traffic import CollectiveKind, sent_bytes
from sdp_compile.simulator import collectives
from sdp_compile.simulator.cluster import Cluster
from sdp_compile.simulator.timeline import Exchange

FIRST_DDP_BUCKET = 2**20
"""Bytes of DistributedDataParallel's first bucket, which is small so that communication begins early."""


class Exchanges:
    """Builds the collectives of one plan on one cluster. Workers that own the same units form a class."""

    def __init__(self, plan: Plan, cluster: Cluster, algorithm: collectives.Algorithm) -> None:
        self.plan, self.cluster, self.algorithm = plan, cluster, algorithm
        self.classes = plan.worker_classes()
        self.everyone: OwnerSet = tuple(range(plan.workers))

    def of(self, kind: CollectiveKind, payload: float, owners: OwnerSet, ready: float = 1.0) -> Exchange:
        """Returns one collective among ``owners``."""
        seconds = collectives.seconds(kind, payload, len(owners), self.cluster.path(owners), self.algorithm)
        classes = [number for number, workers in enumerate(self.classes) if is_member(workers[0], owners)]
        return Exchange(kind, payload, len(owners), classes, seconds * self.cluster.factors.get(kind, 1.0), ready)

    def gradients(self, bucket_bytes: int, kind: CollectiveKind = "all_reduce") -> list[Exchange]:
        """Returns a collective per bucket, in global order, or all-to-alls if a worker is in too many groups."""
        buckets = self.plan.buckets(None, bucket_bytes)
        if self.plan.levels.why:
            return self._all_to_alls(buckets, calls=2 if kind == "all_reduce" else 1)
        return [self.of(kind, bucket.nbytes, bucket.owners, self.ready[bucket.pieces[-1].name]) for bucket in buckets]

    def _all_to_alls(self, buckets: Sequence[Bucket], calls: int) -> list[Exchange]:
        """One call to exchange the chunks of all buckets, another one for the averages."""
        most = max(
            sum(
                sent_bytes("reduce_scatter", bucket.nbytes, len(bucket.owners))
                for bucket in buckets
                if is_member(workers[0], bucket.owners)
            )
            for workers in self.classes
        )
        return [self._all_to_all(most)] * calls

    def _all_to_all(self, most: float) -> Exchange:
        """An all-to-all takes as long as the worker that sends most; ``most`` are the bytes that it sends."""
        members = len(self.everyone)
        return self.of("all_to_all", most * members / (members - 1), self.everyone)

    def dense_gradients(self, bucket_bytes: int) -> list[Exchange]:
        """Returns DDP's all-reduces: the gradients of the full model, among all workers."""
        exchanges, filled, cap = list[Exchange](), 0, min(FIRST_DDP_BUCKET, bucket_bytes)
        for name in reversed(self.order):
            filled += self.plan.state[name].nbytes
            if filled >= cap or name == self.order[0]:
                exchanges.append(self.of("all_reduce", filled, self.everyone, self.ready[name]))
                filled, cap = 0, bucket_bytes
        return exchanges

    def refresh(self) -> list[Exchange]:
        """Returns the all-to-all of updated values under backward masking; empty under forward masking."""
        most = max(self.plan.communication(workers[0]).refresh for workers in self.classes)
        return [self._all_to_all(most)] if most else []

    @cached_property
    def order(self) -> list[str]:
        """The names of the trainable parameters, by first use."""
        state = self.plan.state
        return [name for name in self.plan.order if state[name].kind == "parameter" and state[name].requires_grad]

    @cached_property
    def ready(self) -> dict[str, float]:
        """For each parameter, the share of backward after which its gradient is ready, by parameter bytes."""
        total = sum(self.plan.state[name].nbytes for name in self.order) or 1
        nbytes, result = 0, {}
        for name in reversed(self.order):
            nbytes += self.plan.state[name].nbytes
            result[name] = nbytes / total
        return result
