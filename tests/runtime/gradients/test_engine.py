"""The gradient engine against the original model's own gradients, in four processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.optimizer.clipping import clip_grad_norm_
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, compare, connected, gradients, loss_of
from tests.runtime.stub import CYCLIC, SCATTERED, batch

pytestmark = pytest.mark.timeout(120)


def one_step(rank: int, owners: list[tuple[int, ...]], lowering: str, bucket_bytes: int) -> Any:
    module = connected(rank, owners, lowering, bucket_bytes=bucket_bytes)
    loss_of(module, rank).backward()
    return gradients(module)


@pytest.mark.parametrize("owners", [CYCLIC, SCATTERED], ids=["cyclic", "scattered"])
@pytest.mark.parametrize("lowering", ["sliced", "masked"])
@pytest.mark.parametrize("bucket_bytes", [64, 2**20])
def test_gradients_are_means_over_owners(owners: list[tuple[int, ...]], lowering: str, bucket_bytes: int) -> None:
    found = run_workers(one_step, WORKERS, owners, lowering, bucket_bytes)
    compare(owners, found, {rank: [batch(rank)] for rank in range(WORKERS)}, masked=lowering == "masked")


def accumulated(rank: int) -> Any:
    module = connected(rank, CYCLIC)
    engine = module.peers.engine
    with module.peers.no_sync():
        loss_of(module, rank).backward()
        assert engine.pending
        loss_of(module, rank + 10).backward()
    with pytest.raises(DistributedError, match="no_sync"):
        clip_grad_norm_(module, 1.0)
    with pytest.raises(DistributedError, match="no_sync"):
        torch.optim.AdamW(module.parameters()).step()
    loss_of(module, rank + 20).backward()
    assert not engine.pending
    by_backward = gradients(module)
    module.zero_grad()
    with module.peers.no_sync():
        for offset in (0, 10, 20):
            loss_of(module, rank + offset).backward()
    module.peers.sync_gradients()
    by_call = gradients(module)
    module.peers.sync_gradients()  # nothing is pending
    again = gradients(module)
    assert all(torch.equal(a, b) for a, b in zip(by_call.values(), again.values(), strict=True) if a is not None)
    module.zero_grad()
    # Two forward calls and one backward; then a second backward on top reduces all of .grad again.
    (loss_of(module, rank) + loss_of(module, rank + 10)).backward()
    loss_of(module, rank + 20).backward()
    return by_backward, by_call, gradients(module)


def test_accumulation_reduces_all_that_was_accumulated() -> None:
    found = run_workers(accumulated, WORKERS)
    batches = {rank: [batch(rank), batch(rank + 10), batch(rank + 20)] for rank in range(WORKERS)}
    for way in range(3):
        compare(CYCLIC, [own[way] for own in found], batches)


def failing_backward(rank: int) -> Any:
    module = connected(rank, CYCLIC)

    def fail(gradient: Tensor) -> None:
        raise ValueError("the user's hook")

    x, y = batch(rank)
    handle = module.up.weight.register_hook(fail)
    with pytest.raises(ValueError, match="the user's hook"):
        F.cross_entropy(module(x), y).backward()
    handle.remove()
    module.zero_grad()
    loss_of(module, rank).backward()
    return gradients(module)


def test_a_failed_backward_leaves_nothing_behind() -> None:
    compare(CYCLIC, run_workers(failing_backward, WORKERS), {rank: [batch(rank)] for rank in range(WORKERS)})


def missing_gradients(rank: int) -> Any:
    module = connected(rank, CYCLIC)
    loss = loss_of(module, 0) if rank == 0 else module.down.bias.sum()
    loss.backward()
    return gradients(module)


def test_a_rank_without_a_gradient_gets_the_mean_with_zeros() -> None:
    found = run_workers(missing_gradients, WORKERS)
    assert all(found[rank][name] is not None for rank in range(WORKERS) for name in ("up.weight", "norm.bias"))
    assert found[2]["up.weight"].abs().sum() == 0  # worker 2 shares no unit with worker 0
    assert found[1]["up.weight"].abs().sum() > 0
    assert found[0]["idle"] is None


def reduced_precision(rank: int, dtype: torch.dtype) -> Any:
    module = connected(rank, CYCLIC, comm_dtype=dtype)
    loss_of(module, rank).backward()
    return gradients(module)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_comm_dtype(dtype: torch.dtype, tolerance: float) -> None:
    found = run_workers(reduced_precision, WORKERS, dtype)
    compare(CYCLIC, found, {rank: [batch(rank)] for rank in range(WORKERS)}, tolerance=tolerance)


def converted(rank: int) -> Any:
    module = connected(rank, CYCLIC).to(torch.float32)
    x, y = batch(rank)
    F.cross_entropy(module(x.float()), y).backward()
    return {name: None if g is None else g.double() for name, g in gradients(module).items()}


def test_a_converted_module_still_reduces() -> None:
    found = run_workers(converted, WORKERS)
    compare(CYCLIC, found, {rank: [batch(rank)] for rank in range(WORKERS)}, tolerance=1e-4)


def replaced(rank: int) -> Any:
    module = connected(rank, CYCLIC)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    before = module.up.weight
    module.load_state_dict(state, assign=True)
    assert module.up.weight is not before
    module.down.bias = module.tied  # PyTorch unties them here
    loss_of(module, rank).backward()
    found = gradients(module)
    module.zero_grad()
    module.frozen.requires_grad_()
    with pytest.raises(SDPError, match=r"'frozen' did not require a gradient"):
        loss_of(module, rank).backward()
    return found


def test_parameters_that_took_the_places_of_others_are_reduced() -> None:
    compare(CYCLIC, run_workers(replaced, WORKERS), {rank: [batch(rank)] for rank in range(WORKERS)})


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
