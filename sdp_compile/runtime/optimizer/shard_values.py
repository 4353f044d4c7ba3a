"""Lends gradients and values to shards for a step, and sends the stepped values to all owners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.gradients.shard_layout import ShardLayout
from sdp_compile.runtime.sharding.chunks import PendingChunks, gather
from sdp_compile.runtime.sharding.gradient import ShardedGradient
from sdp_compile.runtime.sharding.shards import ShardedBucket


@contextmanager
def bound(layout: ShardLayout, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within this context, the shards of parameters with a gradient have their values, and their part of the gradient.

    Args:
        layout: The shards of this worker.
        parameters: The module's parameters by name.

    Raises:
        SDPError: If a gradient was not reduced to shards.
        DistributedError: If a gradient was accumulated under ``no_sync()`` and not synchronised.
    """
    try:
        for name, shards in layout.shards.items():
            parameter = parameters[name]
            gradient = _reduced(name, parameter, layout)
            for shard in shards:
                part = gradient.parts[shard] if isinstance(gradient, ShardedGradient) else gradient
                if part is not None:
                    shard.bind(shard.part(parameter.detach()), part)
        yield
    finally:
        for shards in layout.shards.values():
            for shard in shards:
                shard.release()


@torch.no_grad()
def publish(layout: ShardLayout, parameters: Mapping[str, nn.Parameter], groups: Groups | None) -> None:
    """Sends every owner the values that the others stepped, while shards are `bound`. Collective in owner groups."""
    waiting: list[tuple[ShardedBucket, PendingChunks]] = []
    for bucket in layout:
        assert groups is not None
        parts = [
            (offset, shard.part(parameters[shard.name]) if shard.parameter.grad is None else shard.parameter)
            for offset, shard in bucket.shards
        ]
        chunk = bucket.packed(parts, bucket.dtype(parameters), parameters[bucket.pieces[0][0]].device)
        waiting.append((bucket, gathered(bucket, chunk, groups, "shards")))
        if len(waiting) > 1:  # one travels while the other is written
            _write(*waiting.pop(0), parameters)
    for entry in waiting:
        _write(*entry, parameters)


def gathered(bucket: ShardedBucket, chunk: Tensor, groups: Groups, counted_as: str) -> PendingChunks:
    """Starts to send the owners' chunks of a bucket to all of them."""
    chunk = chunk.to(groups.wire(chunk.device))
    return gather(chunk, bucket.owners, groups, f"the shards of gradient bucket {bucket.number}", counted_as)


def _write(bucket: ShardedBucket, pending: PendingChunks, parameters: Mapping[str, nn.Parameter]) -> None:
    bucket.write(pending.rows(), parameters)


def _reduced(name: str, parameter: nn.Parameter, layout: ShardLayout) -> Tensor | None:
    """Returns the gradient of a parameter, after checking that it was reduced."""
    gradient = parameter.grad
    if name not in layout.first or gradient is None:
        return gradient
    if not isinstance(gradient, ShardedGradient):
        raise SDPError(
            f"The gradient of {name!r} was computed before the ShardedOptimizer was built, or set by hand, so it is "
            "not in shards. Call zero_grad() and run backward again."
        )
    if gradient.fresh is not None:
        raise DistributedError(
            f"The gradient of {name!r} was accumulated under no_sync() and never synchronised. Run the last backward "
            "of a step outside no_sync(), or call sync_gradients() before the step."
        )
    return gradient
