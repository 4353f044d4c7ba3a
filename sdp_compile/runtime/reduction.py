"""How the owners of a bucket average it: the strategies between which the gradient engine chooses."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.buckets import Bucket
from sdp_compile.runtime.groups import Groups, explained

EVERYTHING = slice(None)
"""All elements of a bucket."""


class Reduction(ABC):
    """One way to average buckets over their owners.

    The gradient engine packs this worker's gradients of a bucket into a flat buffer and calls ``start`` for one bucket
    after the other, in ascending number on every worker, during backward; then ``started_all`` once, and ``finish`` for
    each bucket in the same order. A strategy issues collectives in ``start`` and ``started_all`` only, and waits in
    ``finish`` only, so any strategy keeps the one global order. ``sdp_compile.runtime.gradients.GradientEngine`` takes
    another one through its attribute ``reduction``, on all workers alike and between two backward passes.
    """

    def __init__(self, groups: Groups) -> None:
        self.groups = groups

    def length(self, bucket: Bucket, numel: int) -> int:
        """The elements of the flat buffer for a bucket of ``numel`` elements; what it has in excess is zero."""
        return numel

    @abstractmethod
    def start(self, bucket: Bucket, flat: Tensor) -> None:
        """Issues the reduction of ``flat``, which is the strategy's from now on; does not wait."""

    def started_all(self) -> None:  # noqa: B027
        """Called after the last ``start`` of a backward."""

    @abstractmethod
    def finish(self, bucket: Bucket) -> tuple[Tensor, slice]:
        """Waits; returns the flat buffer and the part of it that holds averages now, which goes into ``.grad``.

        What lies outside that part leaves ``.grad`` as it is: this worker's own gradient.
        """


class AllReduce(Reduction):
    """One all-reduce per bucket, each in its owners' process group."""

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self._in_flight: dict[int, tuple[Tensor, dist.Work | None]] = {}

    def start(self, bucket: Bucket, flat: Tensor) -> None:
        with explained(bucket.owners, f"gradient bucket {bucket.number}", self.groups.rank):
            if flat.dtype == torch.float16:  # a sum over many owners could overflow
                flat.div_(len(bucket.owners))
            work = dist.all_reduce(flat, group=self.groups.process_group(bucket.owners), async_op=True)
        self.groups.traffic.add("gradients", "all_reduce", flat.nbytes, len(bucket.owners))
        self._in_flight[bucket.number] = flat, work

    def finish(self, bucket: Bucket) -> tuple[Tensor, slice]:
        flat, work = self._in_flight.pop(bucket.number)
        if work is not None:
            with explained(bucket.owners, f"gradient bucket {bucket.number}", self.groups.rank):
                work.wait()
        if flat.dtype != torch.float16:
            flat.div_(len(bucket.owners))
        return flat, EVERYTHING
