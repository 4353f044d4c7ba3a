"""The shards of all owners together are the bucket, each element once."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.sharding.shards import split, whole

SHAPES = {"matrix": (4, 6), "vector": (7,), "scalar": ()}
pieces = st.lists(st.sampled_from(sorted(SHAPES)), min_size=1, max_size=3, unique=True).flatmap(
    lambda names: st.tuples(
        *(
            st.tuples(
                st.just(name),
                st.tuples(*(st.lists(st.integers(0, n - 1), min_size=1, unique=True) for n in SHAPES[name])),
            )
            for name in names
        )
    )
)


@settings(deadline=None)
@given(pieces, st.integers(1, 5))
def test_shards_partition_a_bucket_and_write_it_back(chosen: tuple[tuple[str, tuple], ...], workers: int) -> None:
    owners = tuple(range(workers))
    values = {name: torch.arange(1.0, 1 + np.prod(shape, dtype=int)).reshape(shape) for name, shape in SHAPES.items()}
    regions = [(name, Region([np.array(sorted(index)) for index in lists])) for name, lists in chosen]
    flat = torch.cat([region.read(values[name]).reshape(-1) for name, region in regions])
    whole_bucket = Bucket(0, 0, owners, torch.float32, (), 4 * len(flat))
    rows = []
    for rank in owners:
        bucket = split(whole_bucket, owners, rank, regions, values)
        parts = [(offset, shard.part(values[shard.name])) for offset, shard in bucket.shards]
        assert all(
            part.shape == shard.parameter.shape for (_, part), (_, shard) in zip(parts, bucket.shards, strict=True)
        )
        rows.append(bucket.packed(parts, torch.float32, torch.device("cpu")))
    together = torch.cat(rows)
    assert torch.equal(together[: len(flat)], flat) and not together[len(flat) :].any()
    copies = {name: torch.zeros_like(value) for name, value in values.items()}
    bucket.write(together, copies)
    for name, value in values.items():
        expected = torch.zeros_like(value)
        for other, region in regions:
            if other == name:
                region.write(expected, region.read(value))
        assert torch.equal(copies[name], expected)


def test_a_bound_shard_steps_the_parameters_memory_and_is_empty_afterwards() -> None:
    parameter = torch.zeros(3, 2)
    shard = whole("matrix", parameter)
    shard.bind(shard.part(parameter), torch.ones(3, 2))
    torch.optim.SGD([shard.parameter], lr=1.0).step()
    assert (parameter == -1).all()
    shard.release()
    assert shard.parameter.grad is None and shard.parameter.shape == (3, 2)
    assert shard.parameter.untyped_storage().nbytes() == 4
