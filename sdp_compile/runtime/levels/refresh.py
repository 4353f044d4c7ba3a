"""Under backward masking, sends updated values to the workers that compute with them without owning them."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.owners import OwnerSet, is_member, refresh_sources
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.plan import Plan
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.comm.groups import explained
from sdp_compile.runtime.comm.transfer import batches
from sdp_compile.runtime.cutting.stack import Stack
from sdp_compile.runtime.levels.route import Errand, Route
from sdp_compile.runtime.tensors import local_tensors
from sdp_compile.runtime.waiting.patience import complete

Place = tuple[str, Region]
"""The name of a tensor that this worker holds, and a region of it."""


@dataclass(frozen=True)
class _Transfer:
    """What this worker sends to each worker of its exchange group, and what it receives, in the group's order.

    Attributes:
        names: This worker's tensors that hold what is sent, by whomever.
        sends: What goes to each worker.
        receives: What comes from each.
    """

    names: tuple[str, ...]
    sends: tuple[Stack, ...]
    receives: tuple[Stack, ...]

    @cached_property
    def sent(self) -> Stack:
        """All that it sends, one after the other."""
        return Stack([place for stack in self.sends for place in stack.pieces])

    @cached_property
    def received(self) -> Stack:
        """All that it receives."""
        return Stack([place for stack in self.receives for place in stack.pieces])


class Refresh:
    """Sends the values of updated parameters to the workers that compute with them without owning them.

    One all-to-all per bucket and step, among one worker of each class, sends nothing that its receiver has already. The
    owners of a piece hold the same bits, so the receivers are spread over them. Where the workers of a node own the
    same, each of them fetches a share, and they join the shares inside the node. All workers derive the same transfers
    from the plan.

    Args:
        module: This worker's module.
        holdings: Which tensors it holds.
        route: What this worker does in its process groups.
        bucket_bytes: Upper bound in bytes of the values of one transfer; a larger piece travels alone.
    """

    def __init__(
        self, module: nn.Module, holdings: Holdings, route: Route, bucket_bytes: int = DEFAULT_BUCKET_BYTES
    ) -> None:
        self._module = weakref.ref(module)
        self._route, self._groups = route, route.groups
        self._peers = route.levels.exchange_group(holdings.rank)
        self._sharers = route.levels.sharers(holdings.rank)
        self._transfers = [_transfer(pieces, holdings, self._peers) for pieces in _buckets(holdings.plan, bucket_bytes)]

    @torch.no_grad()
    def refresh(self) -> None:
        """Fetches the values that this worker computes with and others own. Collective."""
        module = self._module()
        if module is None:
            return
        tensors = local_tensors(module)
        self._groups.settle()
        for transfer in self._transfers:
            self._run(transfer, tensors)

    def _run(self, transfer: _Transfer, tensors: dict[str, Tensor]) -> None:
        groups = self._groups
        # The module may have been converted or moved since it was planned. Every worker has all of these tensors.
        held = [tensors[name] for name in transfer.names]
        like = torch.empty(0, dtype=reduce(torch.promote_types, {one.dtype for one in held}), device=held[0].device)
        wire, shares = groups.wire(like.device), len(self._sharers)
        lengths = [-(-stack.numel // shares) for stack in transfer.sends]
        counts = [-(-stack.numel // shares) for stack in transfer.receives]
        sent = self._sent(transfer, tensors, like).to(wire)
        received = sent.new_empty(sum(counts))
        if not groups.peers_are_fake:
            with explained(self._peers, "the refresh of parameters", groups.rank):
                work = dist.all_to_all_single(received, sent, counts, lengths, self._peer_group, async_op=True)
                complete(work, sent)
        groups.traffic.add_sent("refresh", sent.nbytes)
        joined = self._joined(received)
        if groups.peers_are_fake:  # they leave the values as they are
            joined = _read(transfer.received, tensors, like)
        elif shares > 1:
            rows = joined.view(shares, -1).split(counts, dim=1)
            whole = [row.reshape(-1)[: stack.numel] for stack, row in zip(transfer.receives, rows, strict=True)]
            joined = torch.cat(whole)
        transfer.received.write(joined, tensors)

    def _sent(self, transfer: _Transfer, tensors: dict[str, Tensor], like: Tensor) -> Tensor:
        """Returns what this worker sends to its peers, one after the other: its share of what each of them needs."""
        share, shares = self._sharers.index(self._groups.rank), len(self._sharers)
        if shares == 1:
            return _read(transfer.sent, tensors, like)
        return torch.cat([_share(_read(stack, tensors, like), share, shares) for stack in transfer.sends])

    @property
    def _peer_group(self) -> dist.ProcessGroup:
        return self._groups.raw_group_of(self._peers)

    def _joined(self, own: Tensor) -> Tensor:
        """Returns the shares of all sharers, one after the other."""
        if len(self._sharers) == 1:
            return own
        errand = Errand([self._sharers], "the refresh of parameters", "refresh")
        return self._route.run([self._route.join(0, errand)], [own])[0]


def _read(stack: Stack, tensors: dict[str, Tensor], like: Tensor) -> Tensor:
    flat = like.new_empty(stack.numel)
    stack.read(flat, tensors)
    return flat


def _share(flat: Tensor, number: int, shares: int) -> Tensor:
    """Returns one of several equal shares, of which the last is filled up with zeros."""
    length = -(-len(flat) // shares)
    return torch.nn.functional.pad(flat, (0, length * shares - len(flat)))[number * length : (number + 1) * length]


def _transfer(pieces: Sequence[tuple[int, Piece]], holdings: Holdings, peers: OwnerSet) -> _Transfer:
    sends: tuple[list[Place], ...] = tuple([] for _ in peers)
    receives: tuple[list[Place], ...] = tuple([] for _ in peers)
    names: dict[str, None] = {}
    for number, piece in pieces:
        sources = refresh_sources(number, piece.owners, peers)
        if not is_member(holdings.rank, piece.owners):
            theirs = holdings.place_of_unowned(piece)
            receives[peers.index(sources[holdings.rank])].append(theirs)
            names[theirs[0]] = None
            continue
        mine = (piece.name, holdings.region(piece))
        names[piece.name] = None
        for receiver, source in sources.items():
            if source == holdings.rank:
                sends[peers.index(receiver)].append(mine)
    return _Transfer(tuple(names), tuple(map(Stack, sends)), tuple(map(Stack, receives)))


def _buckets(plan: Plan, bucket_bytes: int) -> Iterator[list[tuple[int, Piece]]]:
    """Yields numbered pieces of one dtype, at most ``bucket_bytes`` together, or one larger piece."""
    numbered = list(enumerate(plan.refreshed))
    dtypes = [plan.state[piece.name].dtype for _, piece in numbered]
    sizes = [(piece.numel * dtype.itemsize, dtype) for (_, piece), dtype in zip(numbered, dtypes, strict=True)]
    for lot in batches(sizes, bucket_bytes):
        yield numbered[lot]
