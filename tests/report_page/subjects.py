"""Models for the tests of the report page, captured, analysed and planned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdp_compile.capture import capture
from sdp_compile.inspector import Subject
from sdp_compile.planning.making import make_plan
from sdp_compile.policies import Policy
from sdp_compile.structure.analysis import analyse

HOSTILE = (
    "<img src=x onerror=hacked=1>",
    "</script><script>hacked=1</script>",
    "[red]not red[/red] {{ 7 * 7 }} {% raw %}",
    "'\" onfocus=hacked=1 autofocus x='",
    "שלום \u202e日本 🦊 &amp;",
    "long" * 75,
)


def subject_of(model: nn.Module, example: Any, policy: Policy, workers: int) -> Subject:
    analysis = analyse(capture(model, example))
    return Subject(analysis, make_plan(analysis, policy, workers))


def gpt2() -> tuple[nn.Module, dict[str, Tensor]]:
    """The full GPT-2 (12 layers, 124 M parameters) on the meta device."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(use_cache=False))
    return model, {"input_ids": torch.zeros(2, 16, dtype=torch.long)}


class Layer(nn.Module):
    """A residual MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Named(nn.Module):
    """A sequence of layers with the given names."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: Layer(6, 16 + 2 * number) for number, name in enumerate(names)})

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return x


def deep(layers: int) -> tuple[nn.Module, tuple[Tensor]]:
    """A sequence of layers that differ in their names only."""
    return nn.Sequential(*(Layer(8, 16) for _ in range(layers))), (torch.zeros(2, 8),)
