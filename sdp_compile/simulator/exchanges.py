"""The collectives that a way to train implies: of SDP's plan, of DDP, with payloads and costs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from sdp_compile.ownership.owners import OwnerSet, is_member
from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.comm.traffic import CollectiveKind, sent_bytes
from sdp_compile.runtime.gradients.all_to_all import is_crowded
from sdp_compile.simulator import collectives
from sdp_compile.simulator.cluster import Cluster
from sdp_compile.simulator.timeline import Exchange

FIRST_DDP_BUCKET = 2**20
"""DistributedDataParallel's first bucket is small, so that communication begins early."""


class Exchanges:
    """Builds the exchanges of one plan on one cluster; workers that own the same are one class."""

    def __init__(self, plan: Plan, cluster: Cluster, algorithm: collectives.Algorithm) -> None:
        self.plan, self.cluster, self.algorithm = plan, cluster, algorithm
        self.classes = plan.worker_classes()
        self.everyone: OwnerSet = tuple(range(plan.workers))

    def of(self, kind: CollectiveKind, payload: float, owners: OwnerSet, ready: float = 1.0) -> Exchange:
        """One collective among ``owners``."""
        seconds = collectives.seconds(kind, payload, len(owners), self.cluster.path(owners), self.algorithm)
        classes = [number for number, workers in enumerate(self.classes) if is_member(workers[0], owners)]
        return Exchange(kind, payload, len(owners), classes, seconds * self.cluster.factors.get(kind, 1.0), ready)

    def gradients(self, bucket_bytes: int, kind: CollectiveKind = "all_reduce") -> list[Exchange]:
        """One collective for each of the plan's buckets, in the global order; all-to-alls where groups are too many."""
        buckets = self.plan.buckets(None, bucket_bytes)
        if is_crowded(buckets):
            return self._crowded(buckets, calls=2 if kind == "all_reduce" else 1)
        return [self.of(kind, bucket.nbytes, bucket.owners, self.ready[bucket.pieces[-1].name]) for bucket in buckets]

    def _crowded(self, buckets: Sequence[Bucket], calls: int) -> list[Exchange]:
        """All workers exchange the chunks of all buckets in one call, and the averages in another.

        Workers send unequally much; each call takes as long as that of the worker which sends most.
        """
        most = max(
            sum(
                sent_bytes("reduce_scatter", bucket.nbytes, len(bucket.owners))
                for bucket in buckets
                if is_member(workers[0], bucket.owners)
            )
            for workers in self.classes
        )
        members = len(self.everyone)
        return [self.of("all_to_all", most * members / (members - 1), self.everyone)] * calls

    def dense_gradients(self, bucket_bytes: int) -> list[Exchange]:
        """DDP's: all gradients of the full model, over all workers."""
        exchanges, filled, cap = list[Exchange](), 0, min(FIRST_DDP_BUCKET, bucket_bytes)
        for name in reversed(self.order):
            filled += self.plan.state[name].nbytes
            if filled >= cap or name == self.order[0]:
                exchanges.append(self.of("all_reduce", filled, self.everyone, self.ready[name]))
                filled, cap = 0, bucket_bytes
        return exchanges

    def refresh(self) -> list[Exchange]:
        """Backward masking: one all-to-all of updated values, as long as that of the worker which sends most."""
        most, members = max(self.plan.communication(workers[0]).refresh for workers in self.classes), len(self.everyone)
        return [self.of("all_to_all", most * members / (members - 1), self.everyone)] if most else []

    @cached_property
    def order(self) -> list[str]:
        """The trainable parameters by first use."""
        state = self.plan.state
        return [name for name in self.plan.order if state[name].kind == "parameter" and state[name].requires_grad]

    @cached_property
    def ready(self) -> dict[str, float]:
        """For each parameter the share of backward after which its gradient is there: by the bytes behind it."""
        total = sum(self.plan.state[name].nbytes for name in self.order) or 1
        done, result = 0, {}
        for name in reversed(self.order):
            done += self.plan.state[name].nbytes
            result[name] = done / total
        return result
