"""A worker's subnetwork equals the original eager model with the parameters ``mask * theta`` (DESIGN 2.1)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from sdp_compile import BlockPolicy, NeuronPolicy, NothingToPartition, sdp_compile
from sdp_compile.capture import capture
from sdp_compile.compiler import compile_rank
from sdp_compile.plan import Plan, make_plan
from sdp_compile.policies import Policy
from sdp_compile.runtime.module import SDPModule
from sdp_compile.structure.analyse import analyse
from tests.models import MODELS, WITH_BLOCKS, doubled
from tests.oracle import assert_exact, randomise, relative_error, run_compiled, without_randomness

NEURON = NeuronPolicy(coverage=0.5)
BLOCK = BlockPolicy(coverage=0.5)


@lru_cache(maxsize=1)
def prepared(name: str) -> Any:
    """A model in float64 with random weights, its inputs, its capture and its structure; kept for the next test."""
    model, args, kwargs = doubled(MODELS[name]())
    without_randomness(randomise(model))
    captured = capture(model, args or kwargs)
    return model, args, kwargs, captured, analyse(captured)


def compiled(name: str, policy: Policy, workers: int, rank: int, lowering: Any = "sliced") -> tuple[SDPModule, Plan]:
    model, _, _, captured, (structure, blocks) = prepared(name)
    plan = make_plan(captured, structure, policy, workers)
    return compile_rank(model, captured, structure, blocks, plan, rank, lowering=lowering), plan


def assert_every_element_owned(plan: Plan, replicas: int) -> None:
    for name, tensor in plan.state.items():
        if tensor.kind != "parameter":
            continue
        owners = sum(plan.mask(name, rank).int() for rank in range(plan.workers))
        assert set(owners.unique().tolist()) <= {replicas, plan.workers}, name
        assert sum(piece.numel for piece in plan.pieces(name)) == tensor.numel


def check(name: str, policy: Policy, workers: int, replicas: int) -> None:
    model, args, kwargs, *_ = prepared(name)
    for rank in range(workers):
        module, plan = compiled(name, policy, workers, rank)
        assert_exact(module, model, plan, rank, args, kwargs)
    assert_every_element_owned(plan, replicas)


@pytest.mark.parametrize("name", MODELS)
def test_neuron_level(name: str) -> None:
    check(name, NEURON, workers=4, replicas=2)


@pytest.mark.parametrize("name", MODELS)
def test_block_level(name: str) -> None:
    if name in WITH_BLOCKS:
        check(name, BLOCK, workers=4, replicas=2)
        return
    with pytest.raises(NothingToPartition, match="residual"):
        compiled(name, BLOCK, workers=4, rank=0)


@pytest.mark.parametrize("name", MODELS)
def test_sliced_equals_masked(name: str) -> None:
    _, args, kwargs, *_ = prepared(name)
    policies = [NEURON, BLOCK] if name in WITH_BLOCKS else [NEURON]
    for policy in policies:
        sliced, plan = compiled(name, policy, 4, 1)
        masked, _ = compiled(name, policy, 4, 1, lowering="masked")
        for module in (sliced, masked):
            module.train()
        small, full = run_compiled(sliced, args, kwargs), run_compiled(masked, args, kwargs)
        for a, b in zip(small.outputs, full.outputs, strict=True):
            assert relative_error(a, b) < 1e-9
        floor = 1e-5 * max(float(g.abs().max()) for g in full.gradients.values())
        for fqn, gradient in small.gradients.items():
            mine = full.gradients[fqn][plan.mask(fqn, 1)]
            assert relative_error(gradient.reshape(-1), mine, floor) < 1e-9, fqn
        for fqn, gradient in full.gradients.items():
            assert not gradient[~plan.mask(fqn, 1)].any(), fqn


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("name", ["gpt2", "resnet18", "swin_t"])
def test_numbers_of_workers_and_replicas(name: str, replicas: int, workers: int) -> None:
    if replicas > workers:
        with pytest.raises(ValueError, match="replicas"):
            compiled(name, NeuronPolicy(replicas=replicas), workers, 0)
        return
    model, args, kwargs, *_ = prepared(name)
    policy = NeuronPolicy(replicas=replicas)
    rank = workers - 1
    module, plan = compiled(name, policy, workers, rank)
    assert_exact(module, model, plan, rank, args, kwargs)
    raised = {family.replicas for family in plan.families}
    owners = {len(o) for family in plan.families for _, o in plan.owners(family).runs}
    assert owners == raised and min(raised, default=replicas) >= min(replicas, workers)


def test_the_result_differs_from_the_dense_model() -> None:
    """Guards the oracle itself: with random weights a subnetwork must not equal the full model."""
    model, args, kwargs, *_ = prepared("gpt2")
    module, _ = compiled("gpt2", NEURON, 4, 0)
    dense = model.train()(*args, **kwargs).logits
    assert relative_error(module.train()(*args, **kwargs).logits, dense) > 1e-3


def test_one_worker_is_the_dense_model() -> None:
    model, _, kwargs = doubled(MODELS["gpt2"]())
    randomise(model)
    module = sdp_compile(model, example_inputs=kwargs, workers=1, rank=0)
    assert torch.equal(module(**kwargs).logits, model(**kwargs).logits)
    assert list(module.state_dict()) == list(model.state_dict())
