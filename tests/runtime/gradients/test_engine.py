"""The gradient engine against the original model's own gradients, in four processes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.module.connecting import connect
from sdp_compile.runtime.optimizer.clipping import clip_grad_norm_
from tests.distributed import WorkerFailed, run_workers
from tests.runtime.stub import CYCLIC, SCATTERED, Subnet, batch, capture_of, network, oracle_gradients, plan_of

pytestmark = pytest.mark.timeout(120)
WORKERS = 4


def connected(
    rank: int,
    owners: list[tuple[int, ...]],
    lowering: str = "sliced",
    seed: int = 0,
    workers: int = WORKERS,
    **options: Any,
) -> Subnet:
    net = network(seed)
    capture = capture_of(net)
    module = Subnet(net, plan_of(capture, owners, workers), rank, capture, lowering)
    connect(module, Groups(), **options)
    return module


def loss_of(module: Subnet, seed: int) -> Tensor:
    x, y = batch(seed)
    return F.cross_entropy(module(x), y)


def gradients(module: Subnet) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def compare(
    owners: list[tuple[int, ...]],
    found: list[dict[str, Tensor | None]],
    batches: Any,
    masked: bool = False,
    tolerance: float = 1e-10,
) -> None:
    net = network()
    plan = plan_of(capture_of(net), owners, WORKERS)
    expected = oracle_gradients(net, plan, batches)
    for rank, own in enumerate(found):
        for name, gradient in own.items():
            if name in ("frozen", "idle"):
                assert gradient is None
                continue
            mask = plan.mask(name, rank)
            assert gradient is not None
            values = gradient[mask] if masked else gradient.reshape(-1)
            torch.testing.assert_close(values, expected[name][mask], rtol=tolerance, atol=tolerance)
    for name in expected:  # bitwise equal on all owners
        for piece in plan.pieces(name):
            if not masked and found[0][name] is not None:
                common = torch.stack([full_of(plan, rank, name, found[rank][name]) for rank in piece.owners])
                inside = torch.zeros(expected[name].shape, dtype=torch.bool)
                inside[torch.meshgrid(*map(torch.from_numpy, piece.index), indexing="ij")] = True
                assert (common[:, inside] == common[0, inside]).all()


def full_of(plan: Any, rank: int, name: str, value: Any) -> Tensor:
    result = torch.zeros(plan.state[name].shape, dtype=value.dtype)
    result[plan.mask(name, rank)] = value.reshape(-1)
    return result


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


def norms(rank: int) -> Any:
    module = connected(rank, SCATTERED)
    loss_of(module, rank).backward()
    returned = [clip_grad_norm_(module, 1e9, kind) for kind in (2.0, 1.0, 3.0, float("inf"))]
    returned.append(clip_grad_norm_(torch.nn.Sequential(module)[0], 0.01))
    returned.append(clip_grad_norm_(module, 1e9))
    with pytest.raises(SDPError, match="norm_type"):
        clip_grad_norm_(module, 1.0, 0.0)
    with pytest.raises(SDPError, match="Linear"):
        clip_grad_norm_(torch.nn.Linear(1, 1), 1.0)
    return returned


def test_norm_counts_every_element_once() -> None:
    found = run_workers(norms, WORKERS)
    net = network()
    expected = oracle_gradients(
        net, plan_of(capture_of(net), SCATTERED, WORKERS), {rank: [batch(rank)] for rank in range(WORKERS)}
    )
    for name, parameter in net.named_parameters():
        parameter.grad = expected[name] if parameter.requires_grad else None
    kinds = (2.0, 1.0, 3.0, float("inf"))
    oracle = [torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9, kind) for kind in kinds]
    oracle += [oracle[0], torch.tensor(0.01, dtype=torch.float64)]
    for own in found:
        torch.testing.assert_close(torch.stack(own[:5]), torch.stack(oracle[:5]), rtol=1e-12, atol=0)
        torch.testing.assert_close(own[5], oracle[5], rtol=1e-4, atol=0)
        assert all(torch.equal(a, b) for a, b in zip(own, found[0], strict=True))


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


def starts_unequal(rank: int) -> Any:
    module = connected(rank, SCATTERED, seed=rank)
    return module.state_dict()


def test_start_makes_owned_values_equal_to_the_first_owners() -> None:
    found = run_workers(starts_unequal, WORKERS)
    nets = [network(rank) for rank in range(WORKERS)]
    plan = plan_of(capture_of(nets[0]), SCATTERED, WORKERS)
    for name in plan.state:
        if name == "scratch":
            continue
        for piece in plan.pieces(name):
            inside = torch.zeros(plan.state[name].shape, dtype=torch.bool)
            inside[torch.meshgrid(*map(torch.from_numpy, piece.index), indexing="ij") if piece.index else ...] = True
            first = nets[piece.owners[0]].state_dict()[name][inside]
            for rank in piece.owners:
                assert torch.equal(full_of(plan, rank, name, found[rank][name])[inside], first), (name, rank)


def uneven(rank: int) -> Any:
    module = connected(rank, CYCLIC)
    for step in range(2 if rank == 3 else 3):
        module.zero_grad()
        loss_of(module, rank + step).backward()
    return "ended"


def test_uneven_numbers_of_batches_are_an_error_that_says_so() -> None:
    with pytest.raises(WorkerFailed) as raised:
        run_workers(uneven, WORKERS, timeout=8)
    assert 3 not in raised.value.failures
    assert any("DistributedError" in text and "Join" in text for text in raised.value.failures.values())
    assert any(re.search(r"gradient bucket \d+ among workers", text) for text in raised.value.failures.values())


def on_a_subgroup(rank: int) -> Any:
    members = [0, 1, 2, 4]
    group = dist.new_group(members)
    if rank not in members:
        with pytest.raises(DistributedError, match="not a member"):
            Groups(group)
        return None
    position = dist.get_rank(group)
    net = network()
    capture = capture_of(net)
    found = []
    for owners in (SCATTERED, CYCLIC):  # a second plan needs other groups, and some of the same
        module = Subnet(net, plan_of(capture, owners, WORKERS), position, capture)
        connect(module, Groups(group))
        loss_of(module, position).backward()
        found.append(gradients(module))
    return found


def test_workers_are_numbered_within_the_group() -> None:
    found = [own for own in run_workers(on_a_subgroup, 5) if own is not None]
    for number, owners in enumerate((SCATTERED, CYCLIC)):
        compare(owners, [own[number] for own in found], {rank: [batch(rank)] for rank in range(WORKERS)})


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
