"""What goes wrong on one worker ends in an error on all of them that says where."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import torch

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.module.connecting import connect
from tests.distributed import WorkerFailed, run_workers
from tests.runtime.gradients.test_engine import WORKERS, compare, connected, gradients, loss_of
from tests.runtime.stub import CYCLIC, Subnet, batch, capture_of, network, plan_of

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


def changed(rank: int) -> Any:
    module = connected(rank, CYCLIC, bucket_bytes=64)
    loss_of(module, rank).backward()
    module.zero_grad()

    def double(parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.mul_(2)

    handle = module.down.weight.register_post_accumulate_grad_hook(double)
    with pytest.raises(SDPError, match=r"changed the gradient of 'down.weight'"):
        loss_of(module, rank).backward()
    handle.remove()
    module.zero_grad()
    loss_of(module, rank).backward()
    return gradients(module)


def test_a_gradient_that_is_changed_after_it_was_issued() -> None:
    compare(CYCLIC, run_workers(changed, WORKERS), {rank: [batch(rank)] for rank in range(WORKERS)})


def failing_backwards(rank: int) -> Any:
    """Backward fails at different places, with reductions issued on some workers only."""
    module = connected(rank, CYCLIC, bucket_bytes=64)
    loss_of(module, rank).backward()

    def fail(gradient: torch.Tensor) -> None:
        raise ValueError("the user's hook")

    for _ in range(2):
        module.zero_grad()
        handle = module.get_parameter("up.bias" if rank % 2 else "down.weight").register_hook(fail)
        with pytest.raises(ValueError, match="the user's hook"):
            loss_of(module, rank + 20).backward()
        handle.remove()
        everyone = module.peers.groups.gather_json(rank)  # other collectives come after what is in flight
        assert everyone == list(range(WORKERS))
    module.zero_grad()
    loss_of(module, rank).backward()
    return gradients(module)


def test_backwards_that_fail_at_different_places_are_brought_to_an_end() -> None:
    found = run_workers(failing_backwards, WORKERS, timeout=20)
    compare(CYCLIC, found, {rank: [batch(rank)] for rank in range(WORKERS)})


def leaves(rank: int) -> None:
    module = connected(rank, CYCLIC, bucket_bytes=64)
    loss_of(module, rank).backward()
    module.zero_grad()
    if rank == 3:
        module.up.weight.register_hook(lambda gradient: (_ for _ in ()).throw(SystemExit(1)))
    loss_of(module, rank).backward()


def test_a_worker_that_leaves_in_mid_step() -> None:
    start = time.monotonic()
    with pytest.raises(WorkerFailed) as raised:
        run_workers(leaves, WORKERS, timeout=8)
    assert time.monotonic() - start < 60
    texts = raised.value.failures
    assert any("DistributedError" in texts[rank] for rank in range(3))
    named = [re.search(r"among workers ([\d, ]+) failed on worker (\d)", text) for text in texts.values()]
    assert all("3" in match[1] and match[2] != "3" for match in named if match) and any(named)


def too_small(rank: int) -> None:
    net = network()
    capture = capture_of(net)
    module = Subnet(net, plan_of(capture, CYCLIC, WORKERS), rank, capture)
    with pytest.raises(DistributedError, match=rf"worker {rank} of 4, but this process is rank {rank} of 3"):
        connect(module, Groups())


def test_a_process_group_smaller_than_the_plan() -> None:
    run_workers(too_small, 3)
