"""Gradients that are infinite or NaN end in the same error on all workers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdp_compile.errors import DistributedError, SDPError
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, compare, connected, gradients, loss_of
from tests.runtime.stub import CYCLIC, batch

pytestmark = pytest.mark.timeout(120)


def not_finite(rank: int, bad: float) -> Any:
    module = connected(rank, CYCLIC, check_finite=True, bucket_bytes=64)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    before = [parameter.detach().clone() for parameter in module.parameters()]
    local = loss_of(module, rank)
    with module.peers.no_sync():
        local.backward()
    own = gradients(module)
    module.zero_grad()
    handle = module.up.bias.register_hook(lambda gradient: gradient * (bad if rank == 2 else 1.0))
    with pytest.raises(SDPError) as raised:
        loss_of(module, rank).backward()
    handle.remove()
    with pytest.raises(DistributedError, match="never synchronised"):
        optimizer.step()
    kept = gradients(module)
    assert all(
        kept[name] is None or (rank == 2 and name == "up.bias") or torch.equal(kept[name], own[name]) for name in kept
    )
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    module.zero_grad()
    loss_of(module, rank).backward()  # and on it goes
    return str(raised.value), gradients(module)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_on_one_worker(bad: float) -> None:
    found = run_workers(not_finite, WORKERS, bad)
    assert len({text for text, _ in found}) == 1
    assert "worker 2 ('up.bias')" in found[0][0] and "worker 1" not in found[0][0]
    compare(CYCLIC, [own for _, own in found], {rank: [batch(rank)] for rank in range(WORKERS)})


def overflowing(rank: int) -> str:
    module = connected(rank, CYCLIC, check_finite=True, comm_dtype=torch.float16)
    with pytest.raises(SDPError) as raised:
        (module.tied.sum() * 1e6).backward()
    return str(raised.value)


def test_averages_that_are_not_finite() -> None:
    for text in run_workers(overflowing, WORKERS):
        assert "the average of 'tied' is not" in text
