"""Assembles the states of shards to the worker's slices, as an optimizer that is not sharded holds them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdp_compile.runtime.comm.transfer import Request
from sdp_compile.runtime.gradients.shard_layout import parameters_of
from sdp_compile.runtime.optimizer.shard_values import gathered
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
    for bucket in optimizer.layout:
        assert peers is not None
        for key, dtype in _states(bucket, requests):
            held = [
                (offset, shard, optimizer.state.get(shard.parameter, {}).get(key)) for offset, shard in bucket.shards
            ]
            parts = [
                (offset, value)
                for offset, shard, value in held
                if isinstance(value, Tensor) and value.shape == shard.parameter.shape
            ]
            chunk = bucket.packed(parts, dtype, parameters[bucket.pieces[0][0]].device)
            rows = gathered(bucket, chunk, peers.groups, "state").rows()
            wanted = {name: result.get(f"{name}:{key}") for name, _ in bucket.pieces}
            bucket.write(
                rows, {name: value for name, value in wanted.items() if value is not None and value.dtype == dtype}
            )
    return result


def _states(bucket: ShardedBucket, requests: Sequence[Request]) -> list[tuple[str, torch.dtype]]:
    """Returns the states requested for parameters in a bucket, each with its dtypes, in the order of the requests."""
    names = {name for name, _ in bucket.pieces}
    return list(
        dict.fromkeys(
            (request.key[len(request.name) + 1 :], request.dtype) for request in requests if request.name in names
        )
    )
