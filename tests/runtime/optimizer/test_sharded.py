"""ShardedOptimizer against the same optimizer unsharded, in four processes, and what each worker then holds."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdp_compile import BlockPolicy, GradScaler, NeuronPolicy, ShardedOptimizer, sdp_compile
from sdp_compile.planning.buckets import ALIGNMENT
from sdp_compile.runtime.optimizer.full_state import full_optimizer_state_dict
from sdp_compile.runtime.sharding.gradient import held_gradients
from sdp_compile.runtime.state.full_state import full_state_dict
from tests.distributed import run_workers
from tests.runtime import models
from tests.runtime.connected import connected
from tests.runtime.sharded import CLOSE, WORKERS, backward_of, check_owners, compare, optimizer_of, train
from tests.runtime.stub import CYCLIC, SCATTERED

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:.*calibrate")]


def compiled_models(rank: int) -> None:
    warnings.simplefilter("ignore")
    cases = (("transformer", NeuronPolicy(coverage=0.5), "adamw"), ("cnn", BlockPolicy(replicas=3), "sgd"))
    for name, policy, kind in cases:
        first: Any = sdp_compile(models.build(name), policy, (models.batch(name, 0),))
        found = []
        for sharded, model in ((False, first), (True, copy.deepcopy(first))):

            def backward(step: int, model: Any = model, name: str = name) -> None:
                x = models.batch(name, 1000 * rank + step)
                models.loss_of(name, model(x), x).backward()

            optimizer = optimizer_of(model, kind, sharded)
            norms = train(model, optimizer, backward, 10)
            check_owners(model)
            found.append((norms, model.full_state_dict(), model.full_optimizer_state_dict(optimizer)))
        (norms, values, state), (own_norms, own_values, own_state) = found
        torch.testing.assert_close((own_norms, own_values), (norms, values), **CLOSE)
        compare(own_state, state, exactly=False)


def test_training_of_compiled_models_equals_the_unsharded_optimizers() -> None:
    run_workers(compiled_models, WORKERS)


def twins(rank: int) -> None:
    cases = [("sliced", 2**20), ("sliced", 96), ("masked", 2**20), ("sliced", 2**20), ("sliced", 96)]
    for kind, (lowering, bucket_bytes) in zip(("adam", "sgd", "adagrad", "nadam", "own"), cases, strict=True):
        found = []
        for sharded in (False, True):
            model: Any = connected(rank, SCATTERED, lowering, bucket_bytes=bucket_bytes)
            optimizer = optimizer_of(model, kind, sharded)
            norms = train(model, optimizer, backward_of(model), 10)
            check_owners(model)
            found.append((norms, full_state_dict(model), full_optimizer_state_dict(model, optimizer)))
        (norms, values, state), (own_norms, own_values, own_state) = found
        torch.testing.assert_close((own_norms, own_values), (norms, values), **CLOSE)
        compare(own_state, state, exactly=False)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4)).double()


def launched(rank: int) -> None:
    for masking in ("forward", "backward"):
        found = []
        for sharded in (False, True):
            policy = NeuronPolicy(coverage=0.5, masking=masking)
            model: Any = sdp_compile(mlp(), policy, torch.randn(4, 6, dtype=torch.float64))
            run = torch.compile(model, fullgraph=True, backend="aot_eager") if sharded else model
            optimizer = optimizer_of(model, "adamw", sharded)

            def backward(step: int, run: Any = run) -> None:
                generator = torch.Generator().manual_seed(1000 * rank + step)
                run(torch.randn(4, 6, dtype=torch.float64, generator=generator)).square().mean().backward()

            norms = train(model, optimizer, backward, 10)
            check_owners(model)
            found.append((norms, model.full_state_dict(), run(torch.ones(4, 6, dtype=torch.float64)).detach()))
        torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_training_under_torch_compile() -> None:
    run_workers(launched, WORKERS)


def fewer_elements_than_owners(rank: int) -> None:
    torch.manual_seed(0)
    model: Any = sdp_compile(nn.Linear(1, 1), NeuronPolicy(coverage=1.0, strict=False), torch.randn(4, 1))
    optimizer, scaler = ShardedOptimizer(model, torch.optim.AdamW, lr=1e-2), GradScaler("cpu")
    scaler.scale(model(torch.full((4, 1), rank + 1.0)).mean()).backward()
    assert len(gradients_of(model)) == (2 if rank == 0 else 0)
    scaler.step(optimizer)
    scaler.update()
    check_owners(model)
    assert len(model.full_optimizer_state_dict(optimizer)["state"]) == 2


def test_a_worker_without_a_shard_takes_part() -> None:
    run_workers(fewer_elements_than_owners, WORKERS)


def test_scattered_owners_and_single_ones() -> None:
    run_workers(twins, WORKERS)


def in_dtypes(rank: int) -> None:
    cases = [
        (torch.float64, None, 0.0),
        (torch.float32, None, 0.0),
        (torch.float32, torch.bfloat16, 1e-3),
        (torch.bfloat16, None, 2e-2),
        (torch.float32, torch.float16, 1e-3),
    ]
    for dtype, comm_dtype, tolerance in cases:
        found = []
        for sharded in (False, True):
            model: Any = connected(rank, CYCLIC, comm_dtype=comm_dtype).to(dtype)
            make, options = torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}
            optimizer = ShardedOptimizer(model, make, **options) if sharded else make(model.parameters(), **options)
            for step in range(3):
                backward_of(model)(step)
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
            check_owners(model)
            found.append({name: p.detach() for name, p in model.named_parameters()})
        # Two summands have one sum; the shared parameters' four have an order.
        cut = ("up.weight", "down.weight", "up.bias")
        for name, value in found[1].items():
            close = tolerance if name in cut or tolerance else 1e-6
            torch.testing.assert_close(value, found[0][name], rtol=close, atol=close)


def test_dtypes() -> None:
    run_workers(in_dtypes, WORKERS)


def bytes_of(tensors: list[Tensor]) -> int:
    """By distinct storage."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def gradients_of(model: nn.Module) -> list[Tensor]:
    return [part for parameter in model.parameters() for part in held_gradients(parameter)]


def shares(rank: int) -> None:
    held = []
    for sharded in (False, True):
        model: Any = connected(rank, CYCLIC, bucket_bytes=200)
        optimizer = optimizer_of(model, "adamw", sharded)
        backward, traffic = backward_of(model), model.peers.groups.traffic
        for _ in range(2):
            traffic.reset()
            optimizer.zero_grad()
            backward(0)
            optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
        held.append((bytes_of(gradients_of(model)), bytes_of(states), dict(traffic.sent)))
        if sharded:  # what the wrapped optimizer steps has no values of its own
            assert bytes_of(list(optimizer.state)) == 8 * len(optimizer.state)
            assert all(p.grad is None or p.grad.untyped_storage().nbytes() == 0 for p in model.parameters())
    pieces = [
        piece
        for name, p in model.named_parameters()
        if name in model.plan.order and p.requires_grad
        for piece in model.plan.pieces(name)
        if rank in piece.owners
    ]
    slices = 8 * sum(piece.numel for piece in pieces)
    share = 8 * sum(piece.numel / len(piece.owners) for piece in pieces)
    padding = 8 * ALIGNMENT * sum(len(bucket.owners) for bucket in model.plan.buckets(rank, 200))
    (gradients, states, sent), (own_gradients, own_states, own_sent) = held
    assert (gradients, states) == (slices, 2 * slices)
    assert abs(own_gradients - share) <= padding and abs(own_states - 2 * share) <= 2 * padding
    own_bytes = own_sent["gradients"] + own_sent["shards"]
    assert own_sent["gradients"] > 0 < own_sent["shards"] and 0 <= own_bytes - sent["gradients"] <= 8 * padding
    assert share < 0.5 * slices


def test_each_owner_holds_its_share_and_sends_no_more() -> None:
    run_workers(shares, WORKERS)
