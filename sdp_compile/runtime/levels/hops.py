"""Single steps of a reduction: collectives in one group of one level.

Each takes flat tensors, one for each owner set, and returns as many. The members of the group that own a tensor hold
equally long ones, and split them evenly. Groups whose members own the same use the reduce-scatter and all-gather of the
communication library, except with Gloo. Everywhere else one all-to-all serves all owner sets of the group at once.
Measured with Gloo (torch 2.14, 24 MiB, loopback): its own reduce-scatter is an all-reduce underneath, sends twice as
much and takes 1.7 times as long.

Whoever adds parts up does so in the order of the workers, half precision in float32, so that the result does not depend
on timing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.runtime.comm.streams import Begun
from sdp_compile.runtime.comm.traffic import CollectiveKind, Traffic

Operation = Literal["sum", "max"]

# torch 2.14 has new names for these two.
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}


@dataclass(frozen=True)
class Hop:
    """The collectives of this worker's group of one level.

    Attributes:
        group: The process group.
        members: Its workers, ascending.
        rank: This worker.
        has_library: Whether to use the library's reduce-scatter and all-gather, for members that own the same.
        traffic: Counts what this worker sends.
    """

    group: dist.ProcessGroup
    members: OwnerSet
    rank: int
    has_library: bool
    traffic: Traffic

    def scatter(
        self, flats: Sequence[Tensor], owners: Sequence[OwnerSet], operation: Operation, purpose: str, wide: bool
    ) -> Begun:
        """Gives each owner the sum or maximum of its chunk of each tensor.

        Args:
            flats: Flat tensors, each with one equally long chunk per owner in the group. They must stay unchanged.
            owners: For each tensor its owners among the members, ascending.
            operation: What becomes of the chunks.
            purpose: What the traffic is counted as.
            wide: Whether sums of half precision stay in float32.
        """
        if self.has_library:
            return self._by_library("reduce_scatter", flats, operation, purpose)
        rows = [flat.view(len(those), -1) for flat, those in zip(flats, owners, strict=True)]
        sent = {
            peer: [row[those.index(peer)] for row, those in zip(rows, owners, strict=True) if peer in those]
            for peer in self.members
        }
        work, received = self._all_to_all(sent, purpose)

        def end() -> list[Tensor]:
            result = []
            for row, those in zip(rows, owners, strict=True):
                own = row[those.index(self.rank)]
                parts = [own if member == self.rank else next(received[member]) for member in those]
                result.append(_reduced(parts, operation, wide))
            return result

        return Begun(work, end)

    def gather(self, chunks: Sequence[Tensor], owners: Sequence[OwnerSet], purpose: str) -> Begun:
        """Joins the chunks of all owners of each tensor, the opposite of `scatter`."""
        if self.has_library:
            return self._by_library("all_gather", chunks, "sum", purpose)
        sent = {
            peer: [chunk for chunk, those in zip(chunks, owners, strict=True) if peer in those] for peer in self.members
        }
        work, received = self._all_to_all(sent, purpose)

        def end() -> list[Tensor]:
            result = []
            for chunk, those in zip(chunks, owners, strict=True):
                parts = [chunk if member == self.rank else next(received[member]) for member in those]
                result.append(torch.cat(parts) if len(parts) > 1 else chunk)
            return result

        return Begun(work, end)

    def all_reduce(self, flats: Sequence[Tensor], operation: Operation, purpose: str) -> Begun:
        """Gives all members the sum or maximum of each tensor, for members that own the same."""
        return self._by_library("all_reduce", flats, operation, purpose)

    def _all_to_all(
        self, sent: Mapping[int, Sequence[Tensor]], purpose: str
    ) -> tuple[Sequence[tuple[dist.Work | None, Tensor]], dict[int, Iterator[Tensor]]]:
        """Sends tensors to each peer, and receives as many of the same sizes. They travel as bytes."""
        others = {peer: () if peer == self.rank else tensors for peer, tensors in sent.items()}
        flat = [tensor.view(torch.uint8) for tensors in others.values() for tensor in tensors]
        sizes = [sum(tensor.nbytes for tensor in tensors) for tensors in others.values()]
        device = next((tensor.device for tensors in sent.values() for tensor in tensors), torch.device("cpu"))
        outgoing = torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8, device=device)
        incoming = torch.empty_like(outgoing)
        work = dist.all_to_all_single(incoming, outgoing, sizes, sizes, group=self.group, async_op=True)
        self.traffic.add_sent(purpose, outgoing.nbytes)  # a worker sends nothing to itself
        received: dict[int, Iterator[Tensor]] = {
            peer: (_typed(part, like.dtype) for part, like in zip(_cut(incoming, tensors), tensors, strict=True))
            for (peer, tensors), incoming in zip(others.items(), incoming.split(sizes), strict=True)
        }
        return [(work, outgoing)], received

    def _by_library(self, kind: CollectiveKind, flats: Sequence[Tensor], operation: Operation, purpose: str) -> Begun:
        """One collective per dtype for all tensors."""
        members, reduce = len(self.members), _OPERATIONS[operation]
        works: list[tuple[dist.Work | None, Tensor]] = []
        parts: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(flat.dtype for flat in flats):
            numbers = [number for number, flat in enumerate(flats) if flat.dtype == dtype]
            chosen = [flats[number] for number in numbers]
            work: dist.Work | None
            if kind == "reduce_scatter":
                rows = [flat.view(members, -1) for flat in chosen]
                joined = _joined(rows, 1)
                out = joined.new_empty(joined.shape[1])
                work = _reduce_scatter(out, joined.view(-1), reduce, group=self.group, async_op=True)
                pieces = out.split([row.shape[1] for row in rows])
            elif kind == "all_gather":
                joined = _joined(chosen, 0)
                out = joined.new_empty(members, len(joined))
                work = _all_gather(out.view(-1), joined, group=self.group, async_op=True)
                pieces = out.split([len(chunk) for chunk in chosen], dim=1)
            else:
                out = joined = _joined(chosen, 0)
                work = dist.all_reduce(out, reduce, group=self.group, async_op=True)
                pieces = out.split([len(flat) for flat in chosen])
            self.traffic.add(purpose, kind, max(out.nbytes, joined.nbytes), members)
            works.append((work, joined))
            parts.update(zip(numbers, pieces, strict=True))
        return Begun(works, lambda: [parts[number].reshape(-1) for number in range(len(flats))])


def _joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return torch.cat(list(tensors), dim) if len(tensors) > 1 else tensors[0]


def _cut(flat: Tensor, like: Sequence[Tensor]) -> Sequence[Tensor]:
    """Cuts bytes into parts as large as these tensors."""
    parts: Sequence[Tensor] = flat.split([tensor.nbytes for tensor in like])
    return parts


def _typed(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns bytes as numbers: a view, unless numbers of other sizes have shifted them."""
    is_aligned = part.storage_offset() % dtype.itemsize == 0
    return (part if is_aligned else part.clone()).view(dtype)


def _reduced(parts: Sequence[Tensor], operation: Operation, wide: bool) -> Tensor:
    """Returns the sum or maximum of the parts, in their order."""
    first, *others = parts
    if not others:
        return first
    half = first.dtype in (torch.float16, torch.bfloat16)
    total = first.float() if half else first.clone()
    for part in others:
        if operation == "sum":
            total += part
        else:
            torch.maximum(total, part, out=total)
    return total if wide or not half else total.to(first.dtype)
