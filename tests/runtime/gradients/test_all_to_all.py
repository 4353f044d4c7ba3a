"""Averaging with all-to-alls among all workers, against the original model's own gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sdp_compile.runtime.comm.traffic import Traffic
from sdp_compile.runtime.gradients.all_to_all import AllToAll, is_crowded
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, compare, connected, gradients, loss_of
from tests.runtime.gradients.alone import bucket, groups
from tests.runtime.stub import CYCLIC, SCATTERED, batch, capture_of, network, plan_of

pytestmark = pytest.mark.timeout(120)


def exchanged(rank: int, owners: list[tuple[int, ...]], dtype: torch.dtype | None) -> Any:
    module = connected(rank, owners, bucket_bytes=64, comm_dtype=dtype)
    module.peers.engine.reduction = AllToAll(module.peers.groups)
    with module.peers.no_sync():
        loss_of(module, rank).backward()
    module.peers.groups.traffic.reset()
    loss_of(module, rank + 10).backward()
    return gradients(module), dict(module.peers.groups.traffic.calls)


@pytest.mark.parametrize(
    ("owners", "dtype", "tolerance"),
    [(CYCLIC, None, 1e-10), (SCATTERED, None, 1e-10), (SCATTERED, torch.float16, 2e-3), (CYCLIC, torch.bfloat16, 2e-2)],
)
def test_exchanged_gradients_are_means_over_owners(
    owners: list[tuple[int, ...]], dtype: torch.dtype | None, tolerance: float
) -> None:
    found = run_workers(exchanged, WORKERS, owners, dtype)
    batches = {rank: [batch(rank), batch(rank + 10)] for rank in range(WORKERS)}
    compare(owners, [own for own, _ in found], batches, tolerance=tolerance)
    assert all(calls["gradients"] == 2 for _, calls in found)


@pytest.mark.parametrize(("numel", "length"), [(1, 32), (32, 32), (33, 64), (64, 64)])
def test_two_owners_have_chunks_of_equal_multiples_of_sixteen(numel: int, length: int) -> None:
    assert AllToAll(groups()).length(bucket(0), numel) == length


def test_each_step_exchanges_its_own_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other worker sends what this one sends."""

    def exchange(received: Tensor, sent: Tensor, *_: Any, **__: Any) -> None:
        received.copy_(sent)

    monkeypatch.setattr(dist, "all_to_all_single", exchange)
    everyone: Any = groups()
    everyone.group, everyone.device, everyone.traffic = None, torch.device("cpu"), Traffic()
    reduction = AllToAll(everyone)
    for numbers in ([1, 4], [2], []):
        everyone.traffic.reset()
        for number in numbers:
            reduction.start(bucket(number), number * torch.arange(4.0))
        reduction.started_all()
        assert everyone.traffic.sent["gradients"] == len(numbers) * 2 * 8
        for number in numbers:
            # This worker averages the first half, and gets back what it sent as the second one: its own average.
            assert reduction.finish(bucket(number))[0].tolist() == [number, 2 * number, number, 2 * number]


def test_a_worker_in_many_groups_is_crowded() -> None:
    capture = capture_of(network())
    pairs = [(0, other) for other in range(1, 9)]
    more = [(0, other, other + 1) for other in range(1, 9)]
    assert not is_crowded(plan_of(capture, pairs, 9).buckets())
    two = plan_of(capture, more, 10).buckets()
    assert not is_crowded(two)
    assert is_crowded((*plan_of(capture, pairs, 9).buckets(), *two))  # 16 groups of worker 0 and the shared parameters
