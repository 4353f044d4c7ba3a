"""Models that capture is tried on, and their graphs run node by node."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sdp_compile.ir.program import Capture, Mode


def run(model: nn.Module, captured: Capture, mode: Mode, *args: Any, **kwargs: Any) -> Any:
    """Interprets a captured graph node by node with the original's tensors: no generated code takes part."""
    program = captured.programs[mode]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **captured.constants}

    class Run(fx.Interpreter):
        def fetch_attr(self, target: str) -> torch.Tensor:
            return tensors[target]

    flat = pytree.tree_leaves((args, kwargs))
    return pytree.tree_unflatten(Run(nn.Module(), graph=program.graph).run(*flat), program.out_spec)


def calls(captured: Capture, mode: Mode = "train") -> list[fx.Node]:
    """The nodes that compute something."""
    return [node for node in captured.programs[mode].graph.nodes if node.op == "call_function"]


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradients of all parameters, 0 for those that the loss does not depend on."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, found, strict=True))


class Residual(nn.Module):
    """BatchNorm, a tied pair of weights, a buffer that forward assigns, a constant and a region without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.outer = nn.Linear(6, 6)
        self.outer.weight = self.inner[0].weight
        self.register_buffer("seen", torch.ones(6))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scale", torch.arange(1.0, 7.0), persistent=False)

    def forward(self, x: torch.Tensor, *, extra: dict[str, torch.Tensor] | None = None, bias: float = 0.0) -> Any:
        with torch.no_grad():
            old = self.seen
            self.seen = self.seen + x.mean(0)  # in place it would clash with what autograd saved of the old one
            self.count += 1
            target = self.outer(x)
        y = x + self.inner(x) * self.scale + torch.tensor([1.0, 2, 3, 4, 5, 6]) + bias
        if extra is not None:
            y = y + extra["a"]["b"]
        return {"y": self.outer(y * old), "loss": ((y - target) ** 2).mean(), "none": None, "old": old}


class Then(nn.Module):
    """A linear layer and a function of its output: the part under test."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.linear(x))
