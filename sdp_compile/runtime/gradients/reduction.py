"""How the owners of a bucket average it: the strategies of the gradient engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.buckets import Bucket
from sdp_compile.runtime.comm.groups import Groups

EVERYTHING = slice(None)
"""All elements of a bucket."""


class Reduction(ABC):
    """One way to average buckets over their owners.

    The gradient engine packs this worker's gradients of a bucket into a flat buffer. During backward it calls ``start``
    for one bucket after the other, in ascending number on every worker; then ``started_all`` once, and ``finish`` for
    each bucket in the same order, even if backward failed. ``start`` issues collectives as
    `sdp_compile.runtime.comm.streams.Pending`. To use another strategy, set ``GradientEngine.reduction`` between two
    backward passes, on all workers.

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
        """Issues the reduction of ``flat``, which belongs to the strategy from now on."""

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
