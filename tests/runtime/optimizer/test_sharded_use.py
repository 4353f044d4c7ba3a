"""ShardedOptimizer in use: checkpoints, misuse, frozen parameters, loss scaling."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdp_compile import GradScaler, NeuronPolicy, ShardedOptimizer, clip_grad_norm_, sdp_compile
from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.optimizer.full_state import full_optimizer_state_dict, load_full_optimizer_state_dict
from sdp_compile.runtime.state.full_state import full_state_dict, load_full_state_dict
from tests.distributed import run_workers
from tests.runtime import models
from tests.runtime.connected import connected
from tests.runtime.sharded import CLOSE, OPTIMIZERS, WORKERS, backward_of, check_owners, compare, optimizer_of, train
from tests.runtime.stub import CYCLIC, SCATTERED, batch

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:.*calibrate")]


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
    steps = [one["step"].data_ptr() for one in sharded.state.values()]
    assert len(set(steps)) == len(steps)  # no two shards count the same step
    assert bool(full_optimizer_state_dict(model, sharded, rank0_only=True)) == (rank == 0)
    own = io.BytesIO()
    torch.save(sharded.state_dict(), own)
    torch.testing.assert_close(continued(sharded), after, **CLOSE)
    own.seek(0)
    sharded.load_state_dict(torch.load(own, weights_only=True))  # back to where it was saved
    compare(full_optimizer_state_dict(model, sharded), state)
    torch.testing.assert_close(continued(sharded), after, **CLOSE)
    with pytest.raises(SDPError, match="does not belong to worker"):
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
    with pytest.raises(SDPError, match="class of an optimizer"):
        ShardedOptimizer(model, torch.optim.SGD(model.parameters(), lr=1.0))  # type: ignore[arg-type]
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
        with model.peers.no_sync():
            backward(1)
        with pytest.raises(DistributedError, match="no_sync"):
            optimizer.step()
        with pytest.raises(DistributedError, match="no_sync"):
            clip_grad_norm_(model, 1.0)
        with pytest.raises(DistributedError, match="no_sync"):
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        model.peers.sync_gradients()
    gradient = model.up.bias.grad
    assert gradient.shape == model.up.bias.shape and "up.bias" in repr(gradient)
    for read in (gradient.clone, lambda: gradient * 2, lambda: gradient.mul_(gradient), gradient.cpu().sum):
        with pytest.raises(SDPError, match=r"'up\.bias' cannot be read"):
            read()
    assert torch.equal(nn.utils.clip_grad_norm_(model.parameters(), 1e9), clip_grad_norm_(model, 1e9))
    with pytest.raises(SDPError, match="SGD cannot step this model"):
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    optimizer.step()
    assert not torch.equal(before[0], model.up.weight)
    model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)
    with pytest.raises(SDPError, match="replaced"):
        optimizer.step()


class Own(torch.optim.SGD):
    """Its steps are smaller in larger parameters."""

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad / parameter.numel())


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
