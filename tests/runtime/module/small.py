"""A small model with everything that a module can hold, and the comparison of a compiled module with its original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile import sdp_compile
from sdp_compile.runtime.module.sdp_module import SDPModule


def compiled(model: nn.Module, example_inputs: Any) -> SDPModule:
    """The model as the one worker of a plan that owns everything."""
    return sdp_compile(model, "neuron", example_inputs, workers=1, rank=0)


def loss(output: Any) -> torch.Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return torch.stack([(leaf * torch.linspace(-1, 1, leaf.numel()).view(leaf.shape)).sum() for leaf in leaves]).sum()


def assert_same(module: nn.Module, original: nn.Module, call: Callable[[nn.Module], Any]) -> None:
    """Equal outputs (types too), gradients and buffers."""
    for model in (module, original):
        model.zero_grad()
    got, wanted = call(module), call(original)
    assert type(got) is type(wanted)
    torch.testing.assert_close(list(pytree.tree_leaves(got)), list(pytree.tree_leaves(wanted)), rtol=1e-10, atol=1e-10)
    if original.training:
        loss(got).backward()
        loss(wanted).backward()
    parameters = dict(module.named_parameters())
    for name, parameter in original.named_parameters():
        torch.testing.assert_close(parameters[name].grad, parameter.grad, rtol=1e-8, atol=1e-8, msg=name)
    buffers = dict(module.named_buffers())
    for name, buffer in original.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, msg=name)


class Small(nn.Module):
    """Dropout, BatchNorm, tied weights, containers in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.empty = nn.ReLU()
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first[0].weight
        self.register_buffer("table", torch.arange(6.0), persistent=False)

    def forward(
        self, x: torch.Tensor, more: dict[str, torch.Tensor] | None = None, scale: float = 2.0
    ) -> dict[str, Any]:
        y = self.second(self.empty(self.first(x))) * scale + self.table
        return {"y": y if more is None else y + more["z"], "list": [x.sum(), None]}
