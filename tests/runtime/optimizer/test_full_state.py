"""Optimizers: equal owners, full states that the original's optimizer takes, and refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdp_compile.errors import SDPError
from sdp_compile.runtime.optimizer.full_state import full_optimizer_state_dict, load_full_optimizer_state_dict
from sdp_compile.runtime.optimizer.guard import needs_broadcast
from sdp_compile.runtime.optimizer.param_groups import merged_groups
from sdp_compile.runtime.state.full_state import full_state_dict, load_full_state_dict
from tests.distributed import run_workers
from tests.runtime.gradients.test_engine import full_of, loss_of
from tests.runtime.state.test_full_state import subnet
from tests.runtime.stub import CYCLIC, SCATTERED, batch, capture_of, network, plan_of

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:.*calibrate")]
WORKERS = 4


def grouped(model: torch.nn.Module) -> Any:
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1]
    plain = [p for name, p in model.named_parameters() if p.dim() <= 1]
    return [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0, "lr": 2e-2}]


def trained(rank: int, kind: str) -> Any:
    module = subnet(rank, SCATTERED)
    optimizer = torch.optim.AdamW(
        grouped(module) if kind == "groups" else module.parameters(), lr=1e-2, amsgrad=kind == "amsgrad"
    )
    for step in range(4):
        optimizer.zero_grad()
        loss_of(module, 10 * rank + step).backward()
        optimizer.step()
    values, state = full_state_dict(module), full_optimizer_state_dict(module, optimizer)
    only = full_optimizer_state_dict(module, optimizer, rank0_only=True)
    assert bool(only) == (rank == 0)
    gradients = {}
    for name, parameter in module.named_parameters():
        gradients[name] = None if parameter.grad is None else parameter.grad.clone()
    optimizer.step()  # with the same gradients once more
    after = full_state_dict(module)
    # A fresh optimizer goes on from the loaded state.
    load_full_state_dict(module, values)
    fresh = torch.optim.AdamW(grouped(module) if kind == "groups" else module.parameters(), amsgrad=kind == "amsgrad")
    load_full_optimizer_state_dict(module, fresh, state)
    for name, parameter in module.named_parameters():
        parameter.grad = gradients[name]
    fresh.step()
    again = full_state_dict(module)
    assert all(torch.equal(after[key], again[key]) for key in after if "running" not in key)
    return values, state, gradients, after


@pytest.mark.parametrize("kind", ["one group", "groups", "amsgrad"])
def test_the_originals_optimizer_continues_from_the_full_state(kind: str) -> None:
    found = run_workers(trained, WORKERS, kind)
    values, state, _, after = found[0]
    net = network(5)
    net.load_state_dict(values, strict=True)
    dense = torch.optim.AdamW(grouped(net) if kind == "groups" else net.parameters(), amsgrad=kind == "amsgrad")
    dense.load_state_dict(copy.deepcopy(state))
    if kind == "groups":
        assert [group["weight_decay"] for group in dense.param_groups] == [0.1, 0.0]
        assert [group["lr"] for group in dense.param_groups] == [1e-2, 2e-2]
    plan = plan_of(capture_of(net), SCATTERED, WORKERS)
    for name, parameter in net.named_parameters():
        if found[0][2][name] is not None:
            parameter.grad = torch.zeros_like(parameter)
            for rank in range(WORKERS):
                parameter.grad[plan.mask(name, rank)] = full_of(plan, rank, name, found[rank][2][name])[
                    plan.mask(name, rank)
                ]
    dense.step()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.detach(), after[name], rtol=1e-14, atol=1e-15)
    for _, other, _, _ in found[1:]:
        assert other["param_groups"] == state["param_groups"]
        for name, entries in state["state"].items():
            assert all(torch.equal(entries[key], other["state"][name][key]) for key in entries)


def numbered(rank: int) -> Any:
    net = network()
    dense = torch.optim.Adam(net.parameters())
    F.cross_entropy(net(batch(0)[0]), batch(0)[1]).backward()
    dense.step()
    module = subnet(rank, CYCLIC)
    optimizer = torch.optim.Adam(module.parameters())
    load_full_optimizer_state_dict(module, optimizer, dense.state_dict())
    full = full_optimizer_state_dict(module, optimizer)
    with pytest.raises(SDPError, match="one group"):
        load_full_optimizer_state_dict(module, optimizer, torch.optim.Adam([net.up.weight]).state_dict())
    with pytest.raises(SDPError, match="not the module's"):
        load_full_optimizer_state_dict(module, torch.optim.Adam([net.up.weight]), full)
    return full, dense.state_dict(), [name for name, _ in net.named_parameters()]


def test_a_dense_optimizers_state_loads_and_comes_back() -> None:
    full, dense, names = run_workers(numbered, WORKERS)[0]
    assert full["param_groups"][0]["params"] == names
    for number, name in enumerate(names):
        expected = dense["state"].get(number, {})
        assert set(full["state"].get(name, {})) == set(expected)
        assert all(torch.equal(full["state"][name][key], expected[key]) for key in expected)


def steps(rank: int, make: str) -> Any:
    module = subnet(rank, SCATTERED).to(torch.bfloat16 if make == "sgd_bfloat16" else torch.float32)
    optimizer = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        "fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
        "sgd_bfloat16": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        "own": Own,
    }[make](list(module.parameters()))
    dtype = module.up.weight.dtype
    for step in range(20):
        optimizer.zero_grad()
        x, y = batch(100 * rank + step)
        F.cross_entropy(module(x.to(dtype)).float(), y).backward()
        optimizer.step()
    values = {name: p.detach().clone() for name, p in module.named_parameters()}
    states = {
        f"{name}:{key}": value
        for name, p in module.named_parameters()
        for key, value in optimizer.state.get(p, {}).items()
        if isinstance(value, Tensor) and value.shape == p.shape
    }
    return values, states


class Own(torch.optim.SGD):
    """An optimizer that nobody measured: its update depends on the rank's slices."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=1e-2, momentum=0.9)

    def step(self, closure: Any = None) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad * (1e-3 / parameter.numel()))


@pytest.mark.parametrize("make", ["adamw", "sgd", "fused", "sgd_bfloat16", "own"])
def test_owners_stay_bitwise_equal(make: str) -> None:
    found = run_workers(steps, WORKERS, make)
    plan = plan_of(capture_of(network()), SCATTERED, WORKERS)
    start = network().up.weight.float()[plan.mask("up.weight", 0)]
    assert (found[0][0]["up.weight"].float().reshape(-1) - start).abs().max() > 1e-5
    for which in (0, 1):
        for key in found[0][which]:
            name = key.split(":")[0]
            for piece in plan.pieces(name):
                inside = torch.zeros(plan.state[name].shape, dtype=torch.bool)
                inside[torch.meshgrid(*map(torch.from_numpy, piece.index), indexing="ij")] = True
                held = [full_of(plan, rank, name, found[rank][which][key])[inside] for rank in piece.owners]
                assert all(torch.equal(held[0], other) for other in held), (key, piece.owners)


def refusals(rank: int) -> None:
    module = subnet(rank, CYCLIC)
    loss_of(module, rank).backward()
    lbfgs = torch.optim.LBFGS([p for p in module.parameters() if p.requires_grad])
    with pytest.raises(SDPError, match="LBFGS uses scalar products"):
        lbfgs.step(lambda: loss_of(module, rank))
    weights = [p for p in module.parameters() if p.dim() == 2]
    for name in ("Adafactor", "Muon"):
        with pytest.raises(SDPError, match=name):
            getattr(torch.optim, name)(weights).step()

    class Lamb(torch.optim.SGD):
        pass

    with pytest.raises(SDPError, match="norm of whole parameters"):
        Lamb(weights, lr=0.1).step()
    other = torch.nn.Linear(2, 2)
    other(torch.ones(1, 2)).sum().backward()
    torch.optim.Adafactor(other.parameters()).step()  # not ours


def test_optimizers_that_need_whole_parameters_are_refused() -> None:
    run_workers(refusals, WORKERS)


def test_which_optimizers_are_trusted() -> None:
    full, half = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).bfloat16()
    assert not needs_broadcast(torch.optim.AdamW(full.parameters()), False)
    assert not needs_broadcast(torch.optim.AdamW(half.parameters()), False)
    assert not needs_broadcast(torch.optim.SGD(full.parameters(), lr=0.1, momentum=0.9), False)
    assert needs_broadcast(torch.optim.SGD(half.parameters(), lr=0.1, momentum=0.9), False)
    assert needs_broadcast(torch.optim.AdamW(full.parameters(), fused=True), False)
    assert needs_broadcast(torch.optim.AdamW(full.parameters()), True)
    assert needs_broadcast(Own(full.parameters()), False)


def test_groups_that_only_some_ranks_have_are_matched_by_name() -> None:
    def group(rate: float, *names: str) -> dict[str, Any]:
        return {"options": {"lr": rate, "betas": [0.9, 0.99]}, "names": list(names), "named": False}

    ranks = [[group(1.0, "a"), group(2.0, "b")], [group(2.0, "b"), group(3.0, "c")], [group(1.0, "a")]]
    merged = merged_groups(ranks, ["a", "b", "c"])
    assert [(found["lr"], found["params"]) for found in merged] == [(1.0, ["a"]), (2.0, ["b"]), (3.0, ["c"])]
    assert merged[0]["betas"] == (0.9, 0.99)
    same = merged_groups([[group(1.0, "a", "b")], [group(1.0, "c", "b")]], ["a", "b", "c"])
    assert [found["params"] for found in same] == [["a", "b", "c"]]
