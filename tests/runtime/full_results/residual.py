"""A residual network, its batches, and the full model's averaged gradient that four workers must agree on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sdp_compile import BlockPolicy, NeuronPolicy
from sdp_compile.planning.plan import Plan

WORKERS = 4
POLICIES: dict[str, Any] = {
    "neuron": NeuronPolicy(coverage=0.5),
    "backward neuron": NeuronPolicy(coverage=0.5, masking="backward"),
    "block": BlockPolicy(coverage=0.5),
    "backward block": BlockPolicy(coverage=0.5, masking="backward"),
}


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(x)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(5, 6), nn.Linear(6, 3)
        self.branches = nn.Sequential(*(Branch() for _ in range(4)))

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(self.branches(self.inputs(x)))


def network(dtype: torch.dtype = torch.float64) -> Residual:
    torch.manual_seed(0)
    net = Residual()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return net.to(dtype)


def batch(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss_of(output: Tensor) -> Tensor:
    return output.square().sum() + output.sum()


def averaged(plan: Plan, batches: dict[int, list[int]]) -> dict[str, Tensor]:
    """Each element's mean over its owners of the eager model's gradients, summed over each worker's batches."""
    model = network()
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    owners = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for rank, seeds in batches.items():
        masks = {name: plan.mask(name, rank).double() for name in parameters}
        leaves = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
        used = {name: leaf * masks[name] if plan.masking == "forward" else leaf for name, leaf in leaves.items()}
        for seed in seeds:
            loss_of(functional_call(model, used, (batch(seed),))).backward(retain_graph=True)
        for name, leaf in leaves.items():
            assert leaf.grad is not None
            total[name] += leaf.grad * masks[name]
            owners[name] += masks[name]
    return {name: total[name] / owners[name] for name in total}
