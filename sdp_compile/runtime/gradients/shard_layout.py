"""All shards of one worker: the same on every run with one plan, rank and bucket size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.gradients.slots import Slot
from sdp_compile.runtime.sharding.shards import Shard, ShardedBucket, split, whole


class ShardLayout:
    """Which shards of which parameters a worker holds.

    ``buckets`` are the gradient buckets by number, split among their owners, in the global order; ``alone`` holds,
    for parameters of which some pieces lie in buckets, the pieces that this worker alone owns. ``shards`` are all of a
    parameter's, by its name: those in these two, or the parameter as it is where no piece lies in a bucket.
    """

    def __init__(self, module: nn.Module, holdings: Holdings, slots: Sequence[Slot]) -> None:
        """Lays out the shards of ``module``'s parameters; ``slots`` are its gradient buckets, none without peers."""
        plan, rank = holdings.plan, holdings.rank
        parameters = parameters_of(module, plan)
        self.buckets: dict[int, ShardedBucket] = {}
        self.alone: dict[str, ShardedBucket] = {}
        self.first: dict[str, int] = {}
        """The first bucket with a piece of the parameter; what has none is reduced with nobody."""
        for slot in slots:
            bucket, pieces = slot.bucket, [(entry.name, entry.region) for entry in slot.entries]
            self.buckets[bucket.number] = split(bucket.number, bucket.owners, rank, pieces, parameters)
            for name, _ in pieces:
                self.first.setdefault(name, bucket.number)
        for name in self.first:
            own = [piece for piece in plan.pieces(name) if piece.owners == (rank,) and piece.numel]
            if own:
                pieces = [(name, holdings.region(piece)) for piece in own]
                self.alone[name] = split(-1, (rank,), rank, pieces, parameters)
        self.shards: dict[str, list[Shard]] = {name: [] for name in parameters}
        for sharded in self:
            for _, shard in sharded.shards:
                self.shards[shard.name].append(shard)
        for name, parameter in parameters.items():
            if name not in self.first:
                self.shards[name].append(whole(name, parameter))

    def __iter__(self) -> Iterator[ShardedBucket]:
        """All buckets: those with other owners in the global order, then those without."""
        yield from self.buckets.values()
        yield from self.alone.values()


def parameters_of(module: nn.Module, plan: Plan) -> dict[str, nn.Parameter]:
    """Returns the module's parameters by canonical name, in the plan's order."""
    held = dict(module.named_parameters(remove_duplicate=False))
    return {name: held[name] for name in plan.state if name in held}
