"""A thousand workers: each makes its own few groups, whatever the policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from sdp_compile import BlockPolicy, NeuronPolicy, Policy, sdp_compile
from tests.runtime.models import batch, build

WORKERS, RANK = 1024, 517


@pytest.fixture(autouse=True)
def alone_among_many() -> Iterator[None]:
    dist.init_process_group("fake", store=FakeStore(), rank=RANK, world_size=WORKERS)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("policy", "sizes"),
    [
        (NeuronPolicy(coverage=0.5), [128, 8]),
        (NeuronPolicy(coverage=0.5, node_size=8), [8, 16, 8]),
        (BlockPolicy(coverage=0.5, node_size=256), [64, 4, 4]),
    ],
)
def test_a_worker_makes_its_group_of_each_level(
    policy: Policy, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[list[int]] = []
    real: Any = dist.new_group

    def counted(ranks: list[int], **options: Any) -> Any:
        made.append(ranks)
        return real(ranks, **options)

    monkeypatch.setattr(dist, "new_group", counted)
    module = sdp_compile(build("transformer"), policy, (batch("transformer", 0),))
    assert [len(group) for group in made] == sizes
    assert len(made) <= 3 and all(RANK in group for group in made)
    module(batch("transformer", 0)).sum().backward()
    assert len(made) == len(sizes)  # and none later
    sdp_compile(build("transformer"), policy, (batch("transformer", 0),))
    assert len(made) == len(sizes)  # the same groups serve the next module
