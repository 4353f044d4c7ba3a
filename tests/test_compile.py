"""``torch.compile`` with its default backend on subnetworks: the same losses and gradients, other sizes, both modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdp_compile import BlockPolicy, NeuronPolicy, sdp_compile
from sdp_compile.policies import Policy
from tests.library_models import MODELS
from tests.oracle import randomise, relative_error, scalar, tensors_of


class ConvolutionBlock(nn.Module):
    """Batch normalisation and dropout behave differently in the two modes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.down = nn.Conv2d(16, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.down(F.relu(self.norm(self.up(x))))
        return self.head(F.dropout(x.mean((2, 3)), 0.5, self.training))


def loss_and_gradients(module: nn.Module, run: Any, inputs: dict[str, torch.Tensor]) -> tuple[float, dict[str, Any]]:
    module.zero_grad()
    loss = scalar(tensors_of(run(**inputs)))
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("policy", [NeuronPolicy(), BlockPolicy()], ids=["neuron", "block"])
def test_gpt2(policy: Policy) -> None:
    model, _, inputs = MODELS["gpt2"]()
    module = sdp_compile(randomise(model), policy, inputs, workers=4, rank=1)
    compiled = torch.compile(module, fullgraph=True)
    for batch, length in ((2, 16), (3, 16), (4, 12)):
        tokens = torch.randint(0, 96, (batch, length))
        call = {"input_ids": tokens, "labels": tokens}
        loss, gradients = loss_and_gradients(module, module, call)
        found, compiled_gradients = loss_and_gradients(module, compiled, call)
        assert found == pytest.approx(loss, rel=1e-4)
        scale = 1e-3 * max(float(g.abs().max()) for g in gradients.values())
        for name, gradient in gradients.items():
            assert relative_error(compiled_gradients[name], gradient, scale) < 1e-3, name


def test_the_modes_switch_on_the_module_and_on_the_wrapper() -> None:
    module = sdp_compile(randomise(ConvolutionBlock()), NeuronPolicy(), (torch.randn(4, 3, 8, 8),), workers=4, rank=0)
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(6, 3, 8, 8)
    for switch in (compiled, module):
        switch.train()
        before = module.norm.running_mean.clone()
        assert not torch.equal(compiled(x), compiled(x))  # dropout
        assert not torch.equal(module.norm.running_mean, before)
        switch.eval()
        before = module.norm.running_mean.clone()
        torch.testing.assert_close(compiled(x), module(x))
        torch.testing.assert_close(compiled(x), compiled(x), rtol=0, atol=0)
        assert torch.equal(module.norm.running_mean, before)
