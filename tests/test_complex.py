"""Models with complex parameters: each worker equals the original model with masked parameters, or masked gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sdp_compile import BlockPolicy, NeuronPolicy, sdp_compile
from sdp_compile.policies import Policy
from tests.complex_models import MODELS
from tests.oracle import assert_exact, randomise

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
    for lowering in ("sliced", "masked"):
        for rank in (0, 1):
            module = sdp_compile(model, POLICIES[policy], (x,), workers=4, rank=rank, lowering=lowering)
            assert_exact(module, model, module.plan, rank, (x,), {})
            assert any(p.is_complex() and p.numel() for p in module.parameters())


def test_the_imaginary_part_takes_part() -> None:
    """Guards the oracle: weights and gradients with no imaginary part would hide a missing conjugation."""
    model, x = build("modReLU")
    torch.view_as_real(model(x).to(torch.complex128)).square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        if parameter.is_complex():
            assert parameter.imag.abs().mean() > 0.05
            assert parameter.grad.imag.abs().mean() > 1e-3
