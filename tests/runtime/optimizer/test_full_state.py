"""Full optimizer states: the original's optimizer takes them, and a worker's takes the original's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sdp_compile.errors import SDPError
from sdp_compile.runtime.optimizer.full_state import full_optimizer_state_dict, load_full_optimizer_state_dict
from sdp_compile.runtime.state.full_state import full_state_dict, load_full_state_dict
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, connected, full_of, loss_of
from tests.runtime.stub import CYCLIC, SCATTERED, batch, capture_of, network, plan_of

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:.*calibrate")]


def grouped(model: torch.nn.Module) -> Any:
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1]
    plain = [p for name, p in model.named_parameters() if p.dim() <= 1]
    return [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0, "lr": 2e-2}]


def trained(rank: int, kind: str) -> Any:
    module = connected(rank, SCATTERED)
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
    module = connected(rank, CYCLIC)
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
