"""How the owners of a bucket average it: the strategies of the gradient engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.buckets import Bucket
from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.comm.streams import issue

EVERYTHING = slice(None)
"""All elements of a bucket."""


class Reduction(ABC):
    """One way to average buckets over their owners.

    The gradient engine packs this worker's gradients of a bucket into a flat buffer. During backward it calls ``start``
    for one bucket after the other, in ascending number on every worker; then ``started_all`` once, and ``finish`` for
    each bucket in the same order, even if backward failed. ``start`` must not wait; it issues collectives through
    `sdp_compile.runtime.comm.streams.issue`, in the groups' ``raw_group`` and ``raw_group_of``. To use another
    strategy, set ``GradientEngine.reduction`` between two backward passes, on all workers.

    Attributes:
        keeps: Whether `keep` stores the averages, so that ``.grad`` need not be written.
    """

    keeps = False

    def __init__(self, groups: Groups) -> None:
        self.groups = groups

    def length(self, bucket: Bucket, numel: int) -> int:
        """Returns the length of the flat buffer for a bucket of ``numel`` elements; the excess is zero."""
        return numel

    @abstractmethod
    def start(self, bucket: Bucket, flat: Tensor) -> None:
        """Issues the reduction of ``flat``, which belongs to the strategy from now on. Does not wait."""

    def started_all(self) -> None:  # noqa: B027
        """Called after the last ``start`` of a backward."""

    @abstractmethod
    def finish(self, bucket: Bucket) -> tuple[Tensor, slice]:
        """Waits for a bucket.

        Returns:
            The flat buffer, and the part of it that holds averages and goes into ``.grad``. Outside that part ``.grad``
            keeps this worker's own gradient.
        """

    def keep(
        self,
        bucket: Bucket,
        averages: Tensor,
        parameters: Mapping[str, nn.Parameter],
        kept: Callable[[OwnerSet], float] = lambda owners: 1.0,
    ) -> bool:
        """Stores the averages that ``finish`` returned, if the strategy keeps them elsewhere than in ``.grad``.

        Called for each bucket in the same order, once it is certain that this reduction holds. ``kept`` returns what
        earlier averages over some owners are multiplied by before these are added.

        Returns:
            Whether it has stored them.
        """
        return False


class AllReduce(Reduction):
    """One all-reduce per bucket, each in its owners' process group."""

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self._in_flight: dict[int, tuple[Tensor, Callable[[], object]]] = {}

    def start(self, bucket: Bucket, flat: Tensor) -> None:
        if flat.dtype == torch.float16:  # a sum over many owners could overflow
            flat.div_(len(bucket.owners))
        with self._explained(bucket):
            group = self.groups.raw_group_of(bucket.owners)
            wait = issue(lambda: dist.all_reduce(flat, group=group, async_op=True), flat)
        self.groups.traffic.add("gradients", "all_reduce", flat.nbytes, len(bucket.owners))
        self._in_flight[bucket.number] = flat, wait

    def finish(self, bucket: Bucket) -> tuple[Tensor, slice]:
        flat, wait = self._in_flight.pop(bucket.number)
        with self._explained(bucket):
            wait()
        if flat.dtype != torch.float16:
            flat.div_(len(bucket.owners))
        return flat, EVERYTHING

    def _explained(self, bucket: Bucket) -> AbstractContextManager[None]:
        return explained(bucket.owners, f"gradient bucket {bucket.number}", self.groups.rank)
