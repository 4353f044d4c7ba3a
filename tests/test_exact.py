"""A worker's subnetwork equals the original eager model with the parameters ``mask * theta``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from sdp_compile import AutoPolicy, BlockPolicy, NeuronPolicy, NothingToPartition, sdp_compile
from tests.exactness import Example, assert_every_element_owned, example
from tests.library_models import MODELS, WITH_BLOCKS, doubled
from tests.oracle import assert_exact, randomise, relative_error, run_compiled

NEURON = NeuronPolicy(coverage=0.5)
BLOCK = BlockPolicy(coverage=0.5)
BACKWARD = NeuronPolicy(coverage=0.5, masking="backward")
BACKWARD_BLOCK = BlockPolicy(coverage=0.5, masking="backward")


@pytest.fixture(scope="module", params=list(MODELS))
def named(request: pytest.FixtureRequest) -> Iterator[tuple[str, Example]]:
    yield request.param, example(request.param)


def check(subject: Example, policy: NeuronPolicy | BlockPolicy) -> None:
    plan = subject.plan(policy, 4)
    for rank in range(4):
        module = subject.compiled(plan, rank)
        module.graph.lint()
        assert_exact(module, subject.model, plan, rank, subject.args, subject.kwargs)
        sizes = sum(p.numel() * p.element_size() for p in module.parameters())
        assert sizes == plan.memory(rank).parameters < plan.memory().parameters
    assert_every_element_owned(plan, 2)


def test_neuron_level(named: tuple[str, Example]) -> None:
    check(named[1], NEURON)


def test_block_level(named: tuple[str, Example]) -> None:
    name, subject = named
    if name in WITH_BLOCKS:
        check(subject, BLOCK)
        return
    with pytest.raises(NothingToPartition, match="residual"):
        subject.plan(BLOCK, 4)


def test_backward_masking(named: tuple[str, Example]) -> None:
    """The output is the full model's, the gradient the owned part of its gradient; each element is held once."""
    name, subject = named
    for policy in [BACKWARD, BACKWARD_BLOCK] if name in WITH_BLOCKS else [BACKWARD]:
        plan = subject.plan(policy, 4)
        module = subject.compiled(plan, 0)  # worker 0 owns the first and the last slot
        assert_exact(module, subject.model, plan, 0, subject.args, subject.kwargs)
        rests = module.unowned.values()
        held = sum(tensor.nbytes for tensor in (*module.parameters(), *rests))
        assert held == plan.memory(0).parameters == plan.memory().parameters
        owned = sum(parameter.nbytes for parameter in module.parameters())
        assert owned == plan.memory(0).gradients < plan.memory().gradients
        assert_every_element_owned(plan, 2)


def test_auto_takes_a_level_and_says_why(named: tuple[str, Example]) -> None:
    name, subject = named
    plan = subject.plan(AutoPolicy(coverage=0.5), 4)
    kinds = {family.kind for family in plan.families}
    assert len(kinds) == 1
    if name not in WITH_BLOCKS:
        assert kinds == {"axis"}
    assert "neuron" in str(plan.report()) and "block" in str(plan.report())


def test_sliced_equals_masked(named: tuple[str, Example]) -> None:
    name, subject = named
    for policy in [NEURON, BLOCK, BACKWARD_BLOCK] if name in WITH_BLOCKS else [NEURON, BACKWARD]:
        plan = subject.plan(policy, 4)
        modules = [subject.compiled(plan, 1, lowering).train() for lowering in ("sliced", "masked")]
        small, full = (run_compiled(module, subject.args, subject.kwargs) for module in modules)
        for a, b in zip(small.outputs, full.outputs, strict=True):
            assert relative_error(a, b) < 1e-9
        floor = 1e-5 * max(float(g.abs().max()) for g in full.gradients.values())
        for fqn, gradient in small.gradients.items():
            mine = full.gradients[fqn][plan.mask(fqn, 1)]
            assert relative_error(gradient.reshape(-1), mine, floor) < 1e-9, fqn
        for fqn, gradient in full.gradients.items():
            assert not gradient[~plan.mask(fqn, 1)].any(), fqn
        for fqn, buffer in small.buffers.items():
            if fqn in plan.state and buffer.is_floating_point():
                mine = full.buffers[fqn][plan.mask(fqn, 1)]
                assert relative_error(buffer.reshape(-1), mine) < 1e-9, fqn


def test_the_result_differs_from_the_dense_model() -> None:
    """Guards the oracle itself: with random weights a subnetwork must not equal the full model."""
    subject = example("gpt2")
    module = subject.compiled(subject.plan(NEURON, 4), 0).train()
    dense = subject.model.train()(**subject.kwargs).logits
    assert relative_error(module(**subject.kwargs).logits, dense) > 1e-3


def test_one_worker_is_the_dense_model() -> None:
    model, _, kwargs = doubled(MODELS["gpt2"]())
    randomise(model)
    module = sdp_compile(model, example_inputs=kwargs, workers=1, rank=0)
    assert torch.equal(module(**kwargs).logits, model(**kwargs).logits)
    assert list(module.state_dict()) == list(model.state_dict())
