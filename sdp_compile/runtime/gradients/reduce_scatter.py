"""Averaging while a `ShardedOptimizer` lives: each owner gets the mean of its own chunk."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.buckets import Bucket
from sdp_compile.runtime.comm.streams import Step
from sdp_compile.runtime.full_results.norms import Engine
from sdp_compile.runtime.gradients.by_levels import ByLevels
from sdp_compile.runtime.gradients.shard_layout import ShardLayout
from sdp_compile.runtime.levels.room import Room
from sdp_compile.runtime.levels.route import Errand
from sdp_compile.runtime.sharding.gradient import ShardedGradient, local_gradient
from sdp_compile.runtime.sharding.shards import Shard


class ReduceScatter(ByLevels):
    """Averages of each bucket only the chunk that this worker steps.

    ``.grad`` of the parameters becomes a `ShardedGradient`, which frees this worker's own gradient.

    Args:
        engine: What averages the gradients.
        reduction: How it averages them without a `ShardedOptimizer`.
        module: This worker's module.
        layout: Which elements of its parameters this worker steps.
        optimizer: The only optimizer that may step the module's parameters.
    """

    keeps = True

    def __init__(
        self, engine: Engine, reduction: ByLevels, module: nn.Module, layout: ShardLayout, optimizer: Optimizer
    ) -> None:
        super().__init__(reduction.route, reduction.buckets, reduction.exchanges)
        self.layout = layout
        self._engine = weakref.ref(engine)
        self._module = weakref.ref(module)
        self._optimizer = weakref.ref(optimizer)

    def serves(self, optimizer: Optimizer) -> bool:
        """Whether it averages gradients for this optimizer."""
        return self._optimizer() is optimizer

    def _steps(self, errand: Errand) -> list[Step]:
        return self.route.there(errand, wide=True)

    def _averages(self, number: int, results: Sequence[Tensor]) -> Room:
        return Room(results, (), results)

    def keep(
        self,
        bucket: Bucket,
        averages: Sequence[Tensor],
        parameters: Mapping[str, nn.Parameter],
        kept: Callable[[OwnerSet], float] = lambda owners: 1.0,
    ) -> None:
        """Puts this worker's chunk into the sharded gradients of its parameters."""
        own = self.layout.buckets[bucket.number]
        for name in dict.fromkeys(name for name, _ in own.pieces):
            if self.layout.first[name] == bucket.number:
                self._start_over(name, parameters[name], kept((self.groups.rank,)))
        (chunk,) = averages
        for offset, shard in own.shards:
            part = chunk[offset : offset + shard.parameter.numel()]
            _add(shard, part, parameters[shard.name], kept(bucket.owners))

    def end(self) -> None:
        """Drops the sharded gradients, which nobody can use any more."""
        module = self._module()
        for parameter in [] if module is None else module.parameters():
            if isinstance(parameter.grad, ShardedGradient):
                parameter.grad = None

    def _start_over(self, name: str, parameter: nn.Parameter, kept: float) -> None:
        """Prepares ``.grad`` for the averages of a parameter, and frees this worker's own gradient."""
        fresh = local_gradient(parameter)
        if parameter.grad is None and not parameter.requires_grad:  # frozen by the user since, on all ranks
            return
        if isinstance(parameter.grad, ShardedGradient):  # not zeroed since the last reduction: they add up
            parameter.grad.fresh = None
        else:
            parameter.grad = ShardedGradient(name, parameter, self._engine)
        if name in self.layout.alone:
            for _, shard in self.layout.alone[name].shards:
                part = torch.zeros_like(shard.parameter) if fresh is None else shard.part(fresh).clone()
                _add(shard, part, parameter, kept)


def _add(shard: Shard, part: Tensor, parameter: nn.Parameter, kept: float) -> None:
    gradient = parameter.grad
    if isinstance(gradient, ShardedGradient):
        part = part.to(parameter.device, parameter.dtype).reshape(shard.parameter.shape)
        before = gradient.parts.get(shard)
        gradient.parts[shard] = part if before is None else (before if kept == 1 else before.mul_(kept)).add_(part)
