"""How the owners of a bucket average it: the strategies of the gradient engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.buckets import Bucket
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.levels.room import Arrangement, Room


class Reduction(ABC):
    """One way to average buckets over their owners.

    The gradient engine packs this worker's gradients of a round of buckets into a room. During backward it calls
    ``start`` for one round after the other, in ascending number on every worker; then ``started_all`` once, and
    ``finish`` for each of these rounds in the same order, even if backward failed. ``start`` issues collectives as
    `sdp_compile.runtime.comm.streams.Pending`. To use another strategy, set ``GradientEngine.reduction`` between two
    backward passes, on all workers.

    Attributes:
        keeps: Whether `keep` stores the averages, so that ``.grad`` is not written.
    """

    keeps = False

    def __init__(self, groups: Groups) -> None:
        self.groups = groups

    @abstractmethod
    def arranged(self, buckets: Sequence[Bucket], dtypes: Sequence[torch.dtype], device: torch.device) -> Arrangement:
        """Returns how buckets lie in the room of a round.

        Args:
            buckets: The buckets of a round.
            dtypes: The dtype in which each of them travels.
            device: The device on which they travel.
        """

    @abstractmethod
    def start(self, number: int, room: Room) -> None:
        """Issues the reduction of a round, whose room belongs to the strategy from now on."""

    def started_all(self) -> None:  # noqa: B027
        """Called after the last ``start`` of a backward."""

    @abstractmethod
    def finish(self, number: int) -> Room:
        """Waits for a round. Returns the room that holds the averages of its buckets."""

    def keep(
        self,
        bucket: Bucket,
        averages: Sequence[Tensor],
        parameters: Mapping[str, nn.Parameter],
        kept: Callable[[OwnerSet], float] = lambda owners: 1.0,
    ) -> None:
        """Stores the averages that ``finish`` returned, if the strategy keeps them elsewhere than in ``.grad``.

        Called for each bucket in the same order, once it is certain that this reduction holds. ``kept`` returns what
        earlier averages over some owners are multiplied by before these are added.
        """
        raise NotImplementedError
