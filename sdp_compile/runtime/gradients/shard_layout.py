"""All shards of one worker: the same in every run with the same plan, rank and bucket size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.packing.slots import Slot
from sdp_compile.runtime.sharding.shards import Shard, ShardedBucket, alone, split, whole


class ShardLayout:
    """Which shards of which parameters a worker holds.

    Attributes:
        buckets: The gradient buckets by number, split among their owners, in the global order.
        alone: For each parameter that has pieces in buckets, the pieces that this worker alone owns.
        first: For each parameter that has pieces in buckets, the number of the first such bucket.
        shards: All shards of each parameter: those in the above, or the whole parameter if it has no piece in a bucket.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        holdings: Holdings,
        slots: Sequence[Slot],
        chunk_order: Callable[[OwnerSet], OwnerSet] = lambda owners: owners,
    ) -> None:
        """Lays out the shards of a module's parameters.

        Args:
            parameters: This worker's parameters by canonical name, in the plan's order.
            holdings: Which tensors the worker holds.
            slots: Its gradient buckets; none without peers.
            chunk_order: Returns owners in the order of the chunks that they average.
        """
        plan, rank = holdings.plan, holdings.rank
        self.buckets: dict[int, ShardedBucket] = {}
        self.alone: dict[str, ShardedBucket] = {}
        self.first: dict[str, int] = {}
        for slot in slots:
            bucket, pieces = slot.bucket, [(entry.name, entry.region) for entry in slot.entries]
            self.buckets[bucket.number] = split(bucket, chunk_order(bucket.owners), rank, pieces, parameters)
            for name, _ in pieces:
                self.first.setdefault(name, bucket.number)
        self._by_round: dict[int, list[ShardedBucket]] = {}
        for sharded in self.buckets.values():
            self._by_round.setdefault(sharded.round, []).append(sharded)
        for name in self.first:
            own = [piece for piece in plan.pieces(name) if piece.owners == (rank,) and piece.numel]
            if own:
                pieces = [(name, holdings.region(piece)) for piece in own]
                self.alone[name] = alone(rank, pieces, parameters)
        self.shards: dict[str, list[Shard]] = {name: [] for name in parameters}
        for sharded in self:
            for _, shard in sharded.shards:
                self.shards[shard.name].append(shard)
        for name, parameter in parameters.items():
            if name not in self.first:
                self.shards[name].append(whole(name, parameter))

    def of_round(self, number: int) -> list[ShardedBucket]:
        """Returns this worker's buckets of a round, in their order."""
        return self._by_round.get(number, [])

    def __iter__(self) -> Iterator[ShardedBucket]:
        """Yields all buckets: those with other owners in the global order, then those without."""
        yield from self.buckets.values()
        yield from self.alone.values()


def parameters_of(module: nn.Module, plan: Plan) -> dict[str, nn.Parameter]:
    """Returns the module's parameters by canonical name, in the plan's order."""
    held = dict(module.named_parameters(remove_duplicate=False))
    return {name: held[name] for name in plan.state if name in held}
