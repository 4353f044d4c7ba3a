"""Averaging with two all-to-alls among all workers, for workers in too many owner groups for one call each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.planning.buckets import MOST_GROUPS, Bucket, groups_per_worker
from sdp_compile.runtime.comm.groups import Groups, explained
from sdp_compile.runtime.gradients.reduction import EVERYTHING, Reduction
from sdp_compile.runtime.waiting.patience import complete

_ALIGNMENT = 16
"""Chunk lengths are multiples of this many elements, so that chunks of all dtypes are aligned for any dtype."""


def is_crowded(buckets: Sequence[Bucket]) -> bool:
    """Whether any worker is in more than ``MOST_GROUPS`` owner groups, given the buckets of all workers."""
    return groups_per_worker(buckets) > MOST_GROUPS


class AllToAll(Reduction):
    """Each owner averages one chunk of every bucket: one all-to-all collects the chunks, one returns the averages.

    Every element is summed by one worker, in the order of its owners, so all of them get the same bits. The volume is
    that of ring all-reduces, with two calls per step instead of one per bucket. Buckets travel as bytes, so those of
    all dtypes go together, and a worker without buckets takes part too.
    """

    def __init__(self, groups: Groups) -> None:
        super().__init__(groups)
        self._everyone = tuple(range(groups.workers))
        self._rows: dict[int, Tensor] = {}
        self._owners: dict[int, dict[int, int]] = {}
        self._common: list[list[int]] = []

    def length(self, bucket: Bucket, numel: int) -> int:
        owners = len(bucket.owners)
        return -(-numel // (owners * _ALIGNMENT)) * owners * _ALIGNMENT

    def start(self, bucket: Bucket, flat: Tensor) -> None:
        rows = flat.view(len(bucket.owners), -1)
        if rows.dtype == torch.float16:  # a sum over many owners could overflow
            rows.div_(len(rows))
        self._rows[bucket.number] = rows
        self._owners[bucket.number] = {owner: row for row, owner in enumerate(bucket.owners)}

    def started_all(self) -> None:
        mine = self.groups.rank
        self._common = [
            [number for number, owners in self._owners.items() if peer in owners and peer != mine]
            for peer in self._everyone
        ]
        self._average(self._exchange(lambda number, peer: self._rows[number][self._owners[number][peer]]))
        for (number, peer), values in self._exchange(lambda number, peer: self._own(number)).items():
            self._rows[number][self._owners[number][peer]] = values

    def finish(self, bucket: Bucket) -> tuple[Tensor, slice]:
        del self._owners[bucket.number]
        return self._rows.pop(bucket.number).view(-1), EVERYTHING

    def _own(self, number: int) -> Tensor:
        """Returns the chunk of a bucket that this worker averages."""
        return self._rows[number][self._owners[number][self.groups.rank]]

    def _average(self, parts: Mapping[tuple[int, int], Tensor]) -> None:
        for number, owners in self._owners.items():
            own = self._own(number)
            wide = torch.float32 if own.dtype in (torch.float16, torch.bfloat16) else own.dtype
            total = torch.zeros_like(own, dtype=wide)
            for owner in owners:
                total += own if owner == self.groups.rank else parts[number, owner]
            own.copy_(total if own.dtype == torch.float16 else total / len(owners))

    def _exchange(self, chunk: Callable[[int, int], Tensor]) -> dict[tuple[int, int], Tensor]:
        """Sends every peer one chunk of each common bucket. Returns what arrives, by bucket number and peer."""
        rows = [chunk(number, peer).view(torch.uint8) for peer, common in enumerate(self._common) for number in common]
        sent = torch.cat(rows) if rows else torch.empty(0, dtype=torch.uint8, device=self.groups.device)
        sizes = [sum(self._own(number).nbytes for number in common) for common in self._common]
        received = torch.empty_like(sent)
        with explained(self._everyone, "the gradient exchange", self.groups.rank):
            work = dist.all_to_all_single(received, sent, sizes, sizes, group=self.groups.group, async_op=True)
            complete(work, sent)
        self.groups.traffic.add_sent("gradients", sent.nbytes)  # a worker sends nothing to itself
        found, start = {}, 0
        for peer, common in enumerate(self._common):
            for number in common:
                own = self._own(number)
                found[number, peer] = received[start : start + own.nbytes].view(own.dtype)
                start += own.nbytes
        return found
