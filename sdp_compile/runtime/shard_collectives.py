"""Reduce-scatter and all-gather inside an owner group: together they send what an all-reduce sends.

Gloo's own reduce-scatter (torch 2.14) is an all-reduce underneath: measured on the loopback device it sends
2(P-1)/P of the payload, an all-to-all of the chunks (P-1)/P in 0.7 to 0.85 of the time. The owner then adds the chunks
in the order of their senders, half precision in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.ownership import OwnerSet
from sdp_compile.runtime.groups import Groups, explained


@dataclass
class Exchange:
    """A collective that has been issued: ``chunks`` has one row per owner once `wait` has returned."""

    what: str
    owners: OwnerSet
    rank: int
    chunks: Tensor
    work: dist.Work | None

    def wait(self) -> Tensor:
        if self.work is not None:
            with explained(self.owners, self.what, self.rank):
                self.work.wait()
        return self.chunks

    def mean(self) -> Tensor:
        """The mean of the rows, in at least float32."""
        chunks = self.wait()
        total = chunks[0].float() if chunks.dtype in (torch.float16, torch.bfloat16) else chunks[0].clone()
        for chunk in chunks[1:]:
            total += chunk
        return total.div_(len(self.owners)) if len(self.owners) > 1 else total


def scatter(flat: Tensor, owners: OwnerSet, groups: Groups, what: str) -> Exchange:
    """Sends each owner its chunk of ``flat``, whose length is a multiple of their number; rows are what came here."""
    chunks = flat.view(len(owners), -1)
    if len(owners) == 1:
        return Exchange(what, owners, groups.rank, chunks, None)
    received = torch.empty_like(chunks)
    with explained(owners, what, groups.rank):
        # As bytes: every dtype travels alike.
        work = dist.all_to_all_single(
            received.view(-1).view(torch.uint8), flat.view(torch.uint8), group=groups.process_group(owners),
            async_op=True,
        )  # fmt: skip
    groups.traffic.add("gradients", "reduce_scatter", flat.nbytes, len(owners))
    return Exchange(what, owners, groups.rank, received, _ordered(work, flat))


def gather(chunk: Tensor, owners: OwnerSet, groups: Groups, what: str, counted_as: str) -> Exchange:
    """Brings the owners' chunks together on all of them, as rows; ``counted_as`` names the traffic."""
    if len(owners) == 1:
        return Exchange(what, owners, groups.rank, chunk.view(1, -1), None)
    chunks = chunk.new_empty((len(owners), chunk.numel()))
    rows = [row.view(torch.uint8) for row in chunks]
    with explained(owners, what, groups.rank):
        work = dist.all_gather(rows, chunk.view(torch.uint8), group=groups.process_group(owners), async_op=True)
    groups.traffic.add(counted_as, "all_gather", chunks.nbytes, len(owners))
    return Exchange(what, owners, groups.rank, chunks, _ordered(work, chunk))


def _ordered(work: dist.Work | None, flat: Tensor) -> dist.Work | None:
    """On an accelerator the wait is on the stream only: collectives of overlapping groups must not run at once."""
    if flat.device.type != "cpu" and work is not None:
        work.wait()
        return None
    return work
