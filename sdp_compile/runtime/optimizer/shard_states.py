"""Assembles the states of shards to the worker's slices, as an optimizer that is not sharded holds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from sdp_compile.runtime.comm.transfer import Request
from sdp_compile.runtime.gradients.shard_layout import parameters_of
from sdp_compile.runtime.levels.pipeline import Pipeline
from sdp_compile.runtime.optimizer.shard_values import send_back
from sdp_compile.runtime.optimizer.sharded import ShardedOptimizer
from sdp_compile.runtime.sharding.shards import ShardedBucket
from sdp_compile.runtime.subnetwork import Subnetwork, require_peers


@torch.no_grad()
def slices_of(optimizer: ShardedOptimizer, module: Subnetwork, requests: Sequence[Request]) -> dict[str, Tensor]:
    """Returns this worker's slices of the requested states, by the requests' keys. Collective.

    Args:
        optimizer: The optimizer that holds the states.
        module: Its module.
        requests: What to assemble, with keys ``NAME:STATE``; the same on all workers.

    Returns:
        The slices; zeros for states that do not exist yet.
    """
    parameters = parameters_of(module, module.plan)
    peers = require_peers(module, "sdp.full_optimizer_state_dict()")
    all_buckets = () if peers is None else module.plan.buckets(None, peers.bucket_bytes)
    result = {
        request.key: torch.zeros_like(parameters[request.name], dtype=request.dtype)
        for request in requests
        if request.name in parameters
    }
    for shards in optimizer.layout.shards.values():
        for shard in shards:
            if shard.region is None:
                for key, value in optimizer.state.get(shard.parameter, {}).items():
                    if f"{shard.name}:{key}" in result:
                        result[f"{shard.name}:{key}"].copy_(value)
    for bucket in optimizer.layout.alone.values():
        for key, dtype in _states((name for name, _ in bucket.pieces), requests):
            bucket.write(_chunk(bucket, key, dtype, optimizer, parameters), _wanted(bucket, key, dtype, result))
    reduction = optimizer.reduction
    for number in range(0 if reduction is None else reduction.rounds):
        assert reduction is not None
        # Also buckets of others: all workers send the same errands.
        names = (piece.name for bucket in all_buckets if bucket.round == number for piece in bucket.pieces)
        buckets = optimizer.layout.of_round(number)
        for key, dtype in _states(names, requests):
            chunks = [_chunk(bucket, key, dtype, optimizer, parameters) for bucket in buckets]
            pipeline = Pipeline()
            errand = send_back(pipeline, number, buckets, chunks, reduction, "state")
            pipeline.drain()
            for bucket, flat in zip(buckets, pipeline.results(errand), strict=True):
                bucket.write(flat, _wanted(bucket, key, dtype, result))
    return result


def _chunk(
    bucket: ShardedBucket,
    key: str,
    dtype: torch.dtype,
    optimizer: ShardedOptimizer,
    parameters: Mapping[str, nn.Parameter],
) -> Tensor:
    """Returns this worker's chunk of a state; zeros where there is none yet."""
    held = ((offset, shard, optimizer.state.get(shard.parameter, {}).get(key)) for offset, shard in bucket.shards)
    parts = [
        (offset, value)
        for offset, shard, value in held
        if isinstance(value, Tensor) and value.shape == shard.parameter.shape
    ]
    return bucket.packed(parts, dtype, parameters[bucket.pieces[0][0]].device)


def _wanted(bucket: ShardedBucket, key: str, dtype: torch.dtype, result: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = ((name, result.get(f"{name}:{key}")) for name, _ in bucket.pieces)
    return {name: value for name, value in found if value is not None and value.dtype == dtype}


def _states(names: Iterable[str], requests: Sequence[Request]) -> list[tuple[str, torch.dtype]]:
    """Returns the states requested for some parameters, each with its dtypes, in the order of the requests."""
    chosen = set(names)
    return list(
        dict.fromkeys(
            (request.key[len(request.name) + 1 :], request.dtype) for request in requests if request.name in chosen
        )
    )
