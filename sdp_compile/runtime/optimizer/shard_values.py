"""Lends gradients and values to shards for a step, and sends the stepped values to all owners."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.gradients.by_levels import ByLevels
from sdp_compile.runtime.gradients.shard_layout import ShardLayout
from sdp_compile.runtime.levels.pipeline import Pipeline
from sdp_compile.runtime.levels.route import Errand
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
def publish(layout: ShardLayout, parameters: Mapping[str, nn.Parameter], reduction: ByLevels | None) -> None:
    """Sends every owner the values that the others stepped, while shards are `bound`. Collective."""
    if reduction is not None:
        reduction.groups.settle()
    for bucket in layout.alone.values():
        bucket.write(_stepped(bucket, parameters), parameters)
    if reduction is None:
        return
    pipeline, written = Pipeline(), 0
    for number in range(reduction.rounds):
        buckets = layout.of_round(number)
        chunks = [_stepped(bucket, parameters) for bucket in buckets]
        send_back(pipeline, number, buckets, chunks, reduction, "shards")
        if pipeline.has_arrived(written):  # written while later ones travel
            _write(written, layout, pipeline, parameters)
            written += 1
    pipeline.drain()
    for number in range(written, reduction.rounds):
        _write(number, layout, pipeline, parameters)


def send_back(
    pipeline: Pipeline,
    number: int,
    buckets: Sequence[ShardedBucket],
    chunks: Sequence[Tensor],
    reduction: ByLevels,
    purpose: str,
) -> int:
    """Starts to send the owners' chunks of a round's buckets to all of them. Returns the number of the errand."""
    groups = reduction.groups
    device = groups.wire(chunks[0].device) if chunks else groups.idle_device
    owners = [tuple(sorted(bucket.owners)) for bucket in buckets]
    errand = Errand(owners, f"the shards of round {number}", purpose, reduction.exchanges[number])
    return pipeline.send(reduction.route.back(errand), [chunk.to(device) for chunk in chunks], device)


def _stepped(bucket: ShardedBucket, parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Returns this worker's chunk of the values."""
    parts = [
        (offset, shard.part(parameters[shard.name]) if shard.parameter.grad is None else shard.parameter)
        for offset, shard in bucket.shards
    ]
    return bucket.packed(parts, bucket.dtype(parameters), parameters[bucket.pieces[0][0]].device)


def _write(number: int, layout: ShardLayout, pipeline: Pipeline, parameters: Mapping[str, nn.Parameter]) -> None:
    for bucket, flat in zip(layout.of_round(number), pipeline.results(number), strict=True):
        bucket.write(flat, parameters)
    pipeline.forget(number)


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
