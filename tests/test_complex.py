"""Models with complex parameters: each worker equals the original model with masked parameters, or masked gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sdp_compile import BlockPolicy, NeuronPolicy, sdp_compile
from sdp_compile.policies import Policy
from tests.complex_models import MODELS
from tests.oracle import assert_exact, randomise, relative_error, run_compiled, run_original

POLICIES: dict[str, Policy] = {
    "neuron": NeuronPolicy(coverage=0.5),
    "backward": NeuronPolicy(coverage=0.5, masking="backward"),
    "backward, all axes": NeuronPolicy(axes="all", scope="all", replicas=3, masking="backward"),
    "block": BlockPolicy(coverage=0.5),
    "backward block": BlockPolicy(coverage=0.5, masking="backward"),
}
WITH_BLOCKS = ("residual",)


def build(name: str) -> tuple[nn.Module, Tensor]:
    cls, x = MODELS[name]
    torch.manual_seed(0)
    return randomise(cls()), x


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MODELS)
def test_workers_equal_the_original(name: str, policy: str) -> None:
    if "block" in policy and name not in WITH_BLOCKS:
        return
    model, x = build(name)
    for rank in (0, 1):
        module = sdp_compile(model, POLICIES[policy], (x,), workers=4, rank=rank)
        assert_exact(module, model, module.plan, rank, (x,), {})
        assert any(p.is_complex() and p.numel() for p in module.parameters())


@pytest.mark.parametrize("policy", ["neuron", "backward"])
@pytest.mark.parametrize("name", ["modReLU", "convolutions"])
def test_the_masked_reference_equals_the_original(name: str, policy: str) -> None:
    model, x = build(name)
    module = sdp_compile(model, POLICIES[policy], (x,), workers=4, rank=1, lowering="masked")
    whole = module.plan.masking == "backward"
    expected = run_original(model, (x,), {}, lambda name: module.plan.mask(name, 1) | whole)
    found = run_compiled(module, (x,), {})
    for mine, theirs in zip(found.outputs, expected.outputs, strict=True):
        assert relative_error(mine, theirs) < 1e-9
    for key, gradient in found.gradients.items():
        mask = module.plan.mask(key, 1)
        assert relative_error(gradient, expected.gradients[key] * mask, 1e-9) < 1e-9, key


def test_rescale_scales_complex_activations() -> None:
    """Two workers with one owner for each unit: what enters the second layer counts twice in training."""
    layers = nn.Linear(5, 8, dtype=torch.complex128), nn.Tanh(), nn.Linear(8, 3, dtype=torch.complex128)
    model, x = randomise(nn.Sequential(*layers)), MODELS["modReLU"][1]
    module = sdp_compile(model, NeuronPolicy(replicas=1, rescale=True), (x,), workers=2, rank=0)
    hook = layers[2].register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    for training in (True, False):
        if not training:
            hook.remove()
        expected = run_original(model.train(training), (x,), {}, lambda name: module.plan.mask(name, 0))
        found = run_compiled(module.train(training), (x,), {})
        assert relative_error(found.outputs[0], expected.outputs[0]) < 1e-12
        for key, gradient in found.gradients.items():
            wanted = expected.gradients[key][module.plan.mask(key, 0)]
            assert relative_error(gradient.reshape(-1), wanted) < 1e-12, key


def test_the_imaginary_part_takes_part() -> None:
    """Guards the oracle: weights and gradients with no imaginary part would hide a missing conjugation."""
    model, x = build("modReLU")
    torch.view_as_real(model(x).to(torch.complex128)).square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        if parameter.is_complex():
            assert parameter.imag.abs().mean() > 0.05
            assert parameter.grad.imag.abs().mean() > 1e-3
