"""ShardedOptimizer against the same optimizer unsharded, in four processes, and what each worker then holds."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile import BlockPolicy, GradScaler, NeuronPolicy, ShardedOptimizer, clip_grad_norm_, sdp_compile
from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.optimizer import full_optimizer_state_dict, load_full_optimizer_state_dict
from sdp_compile.runtime.sharded_gradient import held_gradients
from sdp_compile.runtime.state import full_state_dict, load_full_state_dict
from tests.distributed import run_workers
from tests.runtime import models
from tests.runtime.stub import CYCLIC, SCATTERED, batch
from tests.runtime.test_gradients import connected

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:.*calibrate")]
WORKERS = 4
CLOSE = {"rtol": 1e-11, "atol": 1e-12}
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    # A gradient that is 0 but for rounding must not be normalised to 1: hence eps.
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.05, "eps": 1e-4}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True, "eps": 1e-4}),
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2, "eps": 1e-4}),
    "nadam": (torch.optim.NAdam, {"lr": 1e-2, "eps": 1e-4}),
}
Backward = Callable[[int], None]


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0, "lr": 2e-3}]


def optimizer_of(model: Any, kind: str, sharded: bool) -> torch.optim.Optimizer:
    cls, options = OPTIMIZERS[kind]
    groups: Any = model.parameters() if kind == "nadam" else grouped(model)
    return ShardedOptimizer(model, cls, groups, **options) if sharded else cls(groups, **options)


def train(model: Any, optimizer: torch.optim.Optimizer, backward: Backward, steps: int) -> list[Tensor]:
    """A loop with all that a step can have: a schedule, accumulation, clipping. The norms of all gradients."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    norms = []
    for step in range(steps):
        with model.runtime.no_sync() if step % 3 == 1 else nullcontext():
            backward(step + 500)  # where it is reduced already, the next one is reduced on top
        backward(step)
        norms.append(clip_grad_norm_(model, 0.5))
        optimizer.step()
        schedule.step()
        (model if step % 2 else optimizer).zero_grad()
    return norms


def check_owners(model: Any) -> None:
    """Every worker holds the first owners' bits."""
    full = full_state_dict(model)
    for name, parameter in model.named_parameters():
        value, mask = parameter.detach(), model.plan.mask(name, model.rank)
        assert torch.equal(value[mask] if value.shape == mask.shape else value.reshape(-1), full[name][mask])


def compare(sharded: dict[str, Any], plain: dict[str, Any], exactly: bool = True) -> None:
    """Full optimizer states."""
    assert sharded["param_groups"] == plain["param_groups"]
    assert list(sharded["state"]) == list(plain["state"])
    for name, entries in plain["state"].items():
        assert list(sharded["state"][name]) == list(entries)
        for key, value in entries.items():
            close = {"rtol": 0, "atol": 0} if exactly else CLOSE
            torch.testing.assert_close(sharded["state"][name][key], value, **close)


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


def backward_of(model: Any) -> Backward:
    def backward(step: int) -> None:
        x, y = batch(1000 * model.rank + step)
        F.cross_entropy(model(x.to(model.up.weight.dtype)).to(x.dtype), y).backward()

    return backward


def twins(rank: int) -> None:
    cases = [("sliced", 2**20), ("sliced", 96), ("masked", 2**20), ("sliced", 2**20)]
    for kind, (lowering, bucket_bytes) in zip(("adam", "sgd", "adagrad", "nadam"), cases, strict=True):
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
    found = []
    for sharded in (False, True):
        model: Any = sdp_compile(mlp(), NeuronPolicy(coverage=0.5), torch.randn(4, 6, dtype=torch.float64))
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if sharded else model
        optimizer = optimizer_of(model, "adamw", sharded)

        def backward(step: int, run: Any = run) -> None:
            generator = torch.Generator().manual_seed(1000 * rank + step)
            run(torch.randn(4, 6, dtype=torch.float64, generator=generator)).square().mean().backward()

        norms = train(model, optimizer, backward, 10)
        check_owners(model)
        found.append((norms, model.full_state_dict()))
    torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_training_under_torch_compile() -> None:
    run_workers(launched, WORKERS)


def fewer_elements_than_owners(rank: int) -> None:
    torch.manual_seed(0)
    model: Any = sdp_compile(nn.Linear(1, 1), NeuronPolicy(coverage=1.0, strict=False), torch.randn(4, 1))
    optimizer, scaler = ShardedOptimizer(model, torch.optim.AdamW, lr=1e-2), GradScaler("cpu")
    scaler.scale(model(torch.full((4, 1), rank + 1.0)).mean()).backward()
    assert len(gradients_of(model)) == (rank < 2)
    scaler.step(optimizer)
    scaler.update()
    check_owners(model)
    assert len(model.full_optimizer_state_dict(optimizer)["state"]) == 2


def test_a_worker_without_a_shard_takes_part() -> None:
    run_workers(fewer_elements_than_owners, WORKERS)


def test_scattered_owners_and_single_ones() -> None:
    run_workers(twins, WORKERS)


def in_dtypes(rank: int) -> None:
    cases = [(torch.float64, None, 0.0), (torch.float32, None, 0.0), (torch.float32, torch.bfloat16, 1e-3),
             (torch.bfloat16, None, 2e-2), (torch.float32, torch.float16, 1e-3)]  # fmt: skip
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
        backward, traffic = backward_of(model), model.runtime.groups.traffic
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
    pieces = [piece for name, p in model.named_parameters() if name in model.plan.order and p.requires_grad
              for piece in model.plan.pieces(name) if rank in piece.owners]  # fmt: skip
    slices = 8 * sum(piece.numel for piece in pieces)
    share = 8 * sum(piece.numel / len(piece.owners) for piece in pieces)
    padding = 8 * len(model.plan.buckets(rank, 200))
    (gradients, states, sent), (own_gradients, own_states, own_sent) = held
    assert (gradients, states) == (slices, 2 * slices)
    assert abs(own_gradients - share) <= padding and abs(own_states - 2 * share) <= 2 * padding
    own_bytes = own_sent["gradients"] + own_sent["shards"]
    assert own_sent["gradients"] > 0 < own_sent["shards"] and 0 <= own_bytes - sent["gradients"] <= 8 * padding
    assert share < 0.5 * slices


def test_each_owner_holds_its_share_and_sends_no_more() -> None:
    run_workers(shares, WORKERS)


def checkpoints(rank: int) -> dict[str, Any]:
    model: Any = connected(rank, SCATTERED)
    backward = backward_of(model)
    plain = optimizer_of(model, "adamw", False)
    train(model, plain, backward, 3)
    values, state = full_state_dict(model), full_optimizer_state_dict(model, plain)

    def continued(optimizer: torch.optim.Optimizer) -> list[Tensor]:
        load_full_state_dict(model, values)
        model.zero_grad()
        backward(77)
        optimizer.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    after = continued(plain)
    sharded = optimizer_of(model, "adamw", True)
    load_full_optimizer_state_dict(model, sharded, copy.deepcopy(state))
    compare(full_optimizer_state_dict(model, sharded), state)  # bitwise what the unsharded one gave
    assert bool(full_optimizer_state_dict(model, sharded, rank0_only=True)) == (rank == 0)
    own = io.BytesIO()
    torch.save(sharded.state_dict(), own)
    torch.testing.assert_close(continued(sharded), after, **CLOSE)
    own.seek(0)
    sharded.load_state_dict(torch.load(own, weights_only=True))  # back to where it was saved
    compare(full_optimizer_state_dict(model, sharded), state)
    torch.testing.assert_close(continued(sharded), after, **CLOSE)
    with pytest.raises(SDPError, match="not the state of worker"):
        sharded.load_state_dict(plain.state_dict())
    final = full_optimizer_state_dict(model, sharded)
    del sharded
    load_full_optimizer_state_dict(model, plain, final)
    compare(full_optimizer_state_dict(model, plain), final)
    return final


def elsewhere(rank: int, state: dict[str, Any]) -> None:
    model: Any = connected(rank, [(0,), (0, 1), (1,), (0, 1)] * 2, workers=2)
    sharded = optimizer_of(model, "adamw", True)
    load_full_optimizer_state_dict(model, sharded, state)
    compare(full_optimizer_state_dict(model, sharded), state)


def test_checkpoints_are_those_of_the_unsharded_optimizer() -> None:
    state = run_workers(checkpoints, WORKERS)[0]
    run_workers(elsewhere, 2, state)


def misuse(rank: int) -> None:
    model: Any = connected(rank, SCATTERED)
    backward = backward_of(model)
    for kind in (torch.optim.LBFGS, torch.optim.Adafactor, torch.optim.SparseAdam, Own):
        with pytest.raises(SDPError, match=kind.__name__):
            ShardedOptimizer(model, kind)
    with pytest.raises(SDPError, match="not the module's"):
        ShardedOptimizer(model, torch.optim.SGD, [nn.Parameter(torch.zeros(2))], lr=1.0)
    backward(0)
    optimizer = ShardedOptimizer(model, torch.optim.SGD, lr=0.1)
    with pytest.raises(SDPError, match="zero_grad"):
        optimizer.step()  # the gradients were reduced before it was there
    optimizer.zero_grad()
    with pytest.raises(SDPError, match="one at a time"):
        ShardedOptimizer(model, torch.optim.SGD, lr=0.1)
    with pytest.raises(SDPError, match="pickled"):
        copy.deepcopy(optimizer)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(2):  # without gradients from before, and on top of reduced ones
        with model.runtime.no_sync():
            backward(1)
        with pytest.raises(DistributedError, match="no_sync"):
            optimizer.step()
        with pytest.raises(DistributedError, match="no_sync"):
            clip_grad_norm_(model, 1.0)
        model.runtime.sync_gradients()
    gradient = model.up.bias.grad
    assert gradient.shape == model.up.bias.shape and "up.bias" in repr(gradient)
    for read in (gradient.norm, gradient.clone, lambda: gradient * 2, lambda: gradient.mul_(2), gradient.cpu().sum):
        with pytest.raises(SDPError, match=r"'up\.bias' cannot be read"):
            read()
    with pytest.raises(SDPError, match="cannot be read"):
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    with pytest.raises(SDPError, match="GradScaler"):
        scaler.unscale_(optimizer)
    with pytest.raises(SDPError, match="SGD does not know"):
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    optimizer.step()
    assert not torch.equal(before[0], model.up.weight)
    model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)
    with pytest.raises(SDPError, match="replaced"):
        optimizer.step()


class Own(torch.optim.SGD):
    """What it does is not known."""


def test_misuse_is_an_error() -> None:
    run_workers(misuse, WORKERS)


def deleted(rank: int) -> None:
    model: Any = connected(rank, CYCLIC)
    backward_of(model)(0)
    expected = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    optimizer = ShardedOptimizer(model, torch.optim.SGD, lr=0.1)
    model.zero_grad()
    backward_of(model)(1)
    del optimizer
    assert all(parameter.grad is None for parameter in model.parameters())
    backward_of(model)(0)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def test_without_it_the_model_has_its_ordinary_gradients_back() -> None:
    run_workers(deleted, WORKERS)


def frozen(rank: int) -> None:
    found = []
    for sharded in (False, True):
        model: Any = connected(rank, CYCLIC)
        cls, options = OPTIMIZERS["adamw"]
        optimizer = ShardedOptimizer(model, cls, **options) if sharded else cls(model.parameters(), **options)
        for step in range(4):
            model.up.bias.requires_grad_(step < 2)  # frozen by the user on the way
            model.up.weight.requires_grad_(step != 1)
            optimizer.zero_grad()
            backward_of(model)(step)
            optimizer.step()
        found.append((full_state_dict(model), full_optimizer_state_dict(model, optimizer)))
    (plain, state), (own, own_state) = found
    torch.testing.assert_close(own, plain, **CLOSE)
    compare(own_state, state, exactly=False)
    assert own_state["state"]["up.bias"]["step"] == 2 and own_state["state"]["up.weight"]["step"] == 3
    assert "frozen" not in own_state["state"] and "frozen" in own_state["param_groups"][0]["params"]


def test_frozen_parameters_are_left_alone() -> None:
    run_workers(frozen, WORKERS)


def scaled(rank: int) -> None:
    model: Any = connected(rank, SCATTERED).float()
    optimizer, scaler = ShardedOptimizer(model, torch.optim.AdamW, lr=1e-2), GradScaler("cpu", init_scale=1024.0)
    moved = []
    for step in range(3):
        x, y = batch(rank + 10 * step)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        loss = F.cross_entropy(model(x.float()), y) * (float("inf") if (step, rank) == (1, 2) else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        norm = clip_grad_norm_(model, 1e9)
        assert step == 1 or 0 < norm < 100
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved.append(any(not torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True)))
    assert moved == [True, False, True] and scaler.get_scale() == 512.0
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    check_owners(model)


def test_all_workers_skip_a_step_together() -> None:
    run_workers(scaled, WORKERS)


def test_one_worker_needs_no_process_group() -> None:
    found = []
    for sharded in (False, True):
        x = models.batch("transformer", 0)
        model = sdp_compile(models.build("transformer"), NeuronPolicy(coverage=0.5), (x,), workers=1, rank=0)
        optimizer = optimizer_of(model, "adamw", sharded)
        for _ in range(3):
            models.loss_of("transformer", model(x), x).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append((model.state_dict(), model.full_optimizer_state_dict(optimizer)))
    (plain, state), (own, own_state) = found
    assert all(torch.equal(own[key], value) for key, value in plain.items())
    compare(own_state, state)
