"""Chunks within an owner group: the means that owners get, and what they collect, against plain tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.sharding.chunks import gather, scatter
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(120)
WORKERS = 4
GROUPS = [(0, 1, 2, 3), (0, 2, 3), (1, 3)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
LENGTH = 5


def values(rank: int, owners: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What a worker contributes: small integers, whose sums are exact in any dtype."""
    generator = torch.Generator().manual_seed(rank)
    return torch.randint(-9, 9, (len(owners) * LENGTH,), generator=generator).to(dtype)


def exchanged(rank: int) -> Any:
    groups = Groups()
    groups.create(sorted(GROUPS))
    found = {}
    for owners in GROUPS:
        if rank in owners:
            for dtype in DTYPES:
                mine = values(rank, owners, dtype)
                mean = scatter(mine.clone(), owners, groups, "the chunks").mean()
                rows = gather(mine[:LENGTH].clone(), owners, groups, "the chunks", "shards").rows()
                found[owners, dtype] = mean, torch.stack(rows)
    alone = gather(torch.ones(LENGTH), (rank,), groups, "the chunks", "shards").rows()
    return found, alone


def test_each_owner_gets_the_mean_of_its_chunk_and_all_chunks() -> None:
    for rank, (found, alone) in enumerate(run_workers(exchanged, WORKERS)):
        assert len(alone) == 1 and torch.equal(alone[0], torch.ones(LENGTH))
        for (owners, dtype), (mean, rows) in found.items():
            everyone = torch.stack([values(owner, owners, dtype).double() for owner in owners])
            start = owners.index(rank) * LENGTH
            expected = everyone.mean(0)[start : start + LENGTH]
            assert mean.dtype == (torch.float32 if dtype == torch.bfloat16 else dtype)
            torch.testing.assert_close(mean.double(), expected, rtol=1e-6, atol=1e-6)
            assert torch.equal(rows.double(), everyone[:, :LENGTH])
