"""Compiling in a process group that torchrun started: the plan knows the nodes, and training is exact on them."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn

import sdp_compile as sdp
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(240)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 6)).double()


def _compile_on_nodes(rank: int) -> dict[str, object]:
    """Two nodes of two workers: what is planned, the gradients, and what happens where workers disagree."""
    os.environ.update(LOCAL_WORLD_SIZE="2", LOCAL_RANK=str(rank % 2))
    inputs = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))
    policy = sdp.NeuronPolicy(slots=2)
    module = sdp.compile(model(), policy, (inputs,))
    module(inputs).square().sum().backward()
    gradients = {name: (parameter.grad, module.plan.mask(name, rank)) for name, parameter in module.named_parameters()}
    group = dist.new_group([0, 1])
    within = sdp.compile(model(), policy, (inputs,), group=group).plan if rank < 2 else None
    told = sdp.compile(model(), policy.replace(node_size=4), (inputs,)).plan
    os.environ.update({"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"} if rank == 3 else {})
    with pytest.raises(sdp.DistributedError) as caught:
        sdp.compile(model(), policy, (inputs,))
    return {
        "plan": module.plan,
        "gradients": gradients,
        "within": within and within.node_size,
        "told": told.node_size,
        "error": str(caught.value),
    }


def test_compiled_on_two_nodes() -> None:
    results = run_workers(_compile_on_nodes, 4)
    plan = results[0]["plan"]
    assert plan.node_size == 2 and plan.nodes == 2
    assert [(level.kind, level.size, level.in_node) for level in plan.levels] == [
        ("class", 2, True),
        ("exchange", 2, False),
    ]
    assert plan.owners(plan.families[0]).sets == ((0, 1), (2, 3)), "all workers of a node own the same units"
    assert [result["within"] for result in results] == [0, 0, None, None], "a group is not the world"
    assert {result["told"] for result in results} == {0}, "the policy's word counts"
    assert all("node_size: 2" in result["error"] and "node_size: 1" in result["error"] for result in results)

    expected: dict[str, list[torch.Tensor]] = {}
    for rank in range(4):
        dense = model()
        with torch.no_grad():
            for name, parameter in dense.named_parameters():
                parameter *= plan.mask(name, rank)
        inputs = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))
        dense(inputs).square().sum().backward()
        for name, parameter in dense.named_parameters():
            assert parameter.grad is not None
            expected.setdefault(name, []).append(parameter.grad * plan.mask(name, rank))
    for rank, result in enumerate(results):
        for name, (gradient, mask) in result["gradients"].items():
            owners = sum(plan.mask(name, other).double() for other in range(4))
            mean = sum(expected[name]) / owners.clamp(min=1)
            assert torch.allclose(gradient.flatten(), mean[mask], rtol=0, atol=1e-9), (rank, name)
