"""The gradient engine's reduction while a `ShardedOptimizer` lives: each owner gets the mean of its own chunk."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from sdp_compile.buckets import Bucket
from sdp_compile.runtime.groups import Groups
from sdp_compile.runtime.reduction import Reduction
from sdp_compile.runtime.shard_collectives import Exchange, scatter
from sdp_compile.runtime.shard_layout import ShardLayout, parameters_of
from sdp_compile.runtime.sharded_gradient import ShardedGradient, local_gradient
from sdp_compile.runtime.shards import Shard

if TYPE_CHECKING:
    from sdp_compile.runtime.module import SDPModule


class ReduceScatter(Reduction):
    """Reduces every bucket to the chunk that this worker steps.

    ``.grad`` of the parameters becomes a `ShardedGradient` as soon as all of it is packed, which frees the gradient;
    ``finish`` leaves nothing for the engine to write. ``optimizer`` is the one that may step the module's parameters.
    """

    def __init__(self, groups: Groups, module: SDPModule, layout: ShardLayout, optimizer: Optimizer) -> None:
        super().__init__(groups)
        self.layout = layout
        self._module = weakref.ref(module)
        self._optimizer = weakref.ref(optimizer)
        self._in_flight: dict[int, Exchange] = {}

    def serves(self, optimizer: Optimizer) -> bool:
        """Whether it reduces for this optimizer."""
        return self._optimizer() is optimizer

    def length(self, bucket: Bucket, numel: int) -> int:
        return self.layout.buckets[bucket.number].chunk * len(bucket.owners)

    @torch.no_grad()
    def start(self, bucket: Bucket, flat: Tensor) -> None:
        parameters = self._parameters()
        self._in_flight[bucket.number] = scatter(flat, bucket.owners, self.groups, f"gradient bucket {bucket.number}")
        for name in dict.fromkeys(name for name, _ in self.layout.buckets[bucket.number].pieces):
            if self.layout.last[name] == bucket.number:
                self._let_go(name, parameters[name])

    @torch.no_grad()
    def finish(self, bucket: Bucket) -> tuple[Tensor, slice]:
        parameters = self._parameters()
        mean = self._in_flight.pop(bucket.number).mean()
        for offset, shard in self.layout.buckets[bucket.number].shards:
            _add(shard, mean[offset : offset + shard.parameter.numel()], parameters[shard.name])
        return mean, slice(0, 0)

    def end(self) -> None:
        """Drops the sharded gradients: nobody can use them any more."""
        for parameter in self._parameters().values():
            if isinstance(parameter.grad, ShardedGradient):
                parameter.grad = None

    def _parameters(self) -> dict[str, nn.Parameter]:
        module = self._module()
        return {} if module is None else parameters_of(module)

    def _let_go(self, name: str, parameter: nn.Parameter) -> None:
        fresh = local_gradient(parameter)
        if parameter.grad is None and not parameter.requires_grad:  # frozen by the user since, on all ranks
            return
        if isinstance(parameter.grad, ShardedGradient):  # not zeroed since the last reduction: they add up
            parameter.grad.fresh = None
        else:
            parameter.grad = ShardedGradient(name, parameter)
        if name in self.layout.alone:
            for _, shard in self.layout.alone[name].shards:
                part = torch.zeros_like(shard.parameter) if fresh is None else shard.part(fresh).clone()
                _add(shard, part, parameter)


def _add(shard: Shard, part: Tensor, parameter: nn.Parameter) -> None:
    gradient = parameter.grad
    if isinstance(gradient, ShardedGradient):
        part = part.to(parameter.device, parameter.dtype).reshape(shard.parameter.shape)
        gradient.parts[shard] = gradient.parts[shard].add_(part) if shard in gradient.parts else part
