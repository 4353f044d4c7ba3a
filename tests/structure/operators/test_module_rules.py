"""Whole layers as models write them: which of their parameters are cut, held against the masked original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from sdp_compile import NeuronPolicy
from tests.structure.operators.test_operator_rules import Branches, check

Tensor = torch.Tensor


class Then(nn.Module):
    """Modules in sequence; of a tuple, as attention and recurrent layers return, the first goes on."""

    def __init__(self, *layers: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer if isinstance(layer, nn.Module) else Function(layer) for layer in layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            x = x[0] if isinstance(x, tuple) else x
        return x


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


class SelfAttention(nn.Module):
    def __init__(self, batch_first: bool, weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 4, batch_first=batch_first)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=self.weights)[0]


class Experts(nn.Module):
    """Every token through all experts, whose weights are stacked: gate, up and down projection by ``product``."""

    def __init__(self, product: str) -> None:
        super().__init__()
        self.product = product
        self.router = nn.Linear(8, 4)
        self.up = nn.Parameter(torch.empty(4, 8, 12))
        self.down = nn.Parameter(torch.empty(4, 12, 8))
        self.bias = nn.Parameter(torch.empty(4, 12))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weights = self.router(tokens).sigmoid()
        if self.product == "einsum":
            hidden = F.gelu(torch.einsum("td,edh->teh", tokens, self.up) + self.bias)
            return torch.einsum("teh,ehd,te->td", hidden, self.down, weights).view_as(x)
        every = tokens.expand(4, -1, -1)
        if self.product == "bmm":
            hidden = F.gelu(torch.bmm(every, self.up) + self.bias.unsqueeze(1))
        else:
            hidden = F.gelu(torch.baddbmm(self.bias.unsqueeze(1), every, self.up))
        return (torch.bmm(hidden, self.down) * weights.t().unsqueeze(-1)).sum(0).view_as(x)


class LoopedCell(nn.Module):
    def __init__(self, kind: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.cell = kind(8, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(x.shape[0], 6)
        state: Any = (hidden, hidden) if isinstance(self.cell, nn.LSTMCell) else hidden
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


class StandardisedConvolution(nn.Conv1d):
    """Weights standardised as in BiT: by a batch norm with the output channels as its channels."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, eps=1e-6)
        return F.conv1d(x, weight.reshape_as(self.weight), None, padding=1)


class ConditionalConvolution(nn.Module):
    """Each sample has a kernel of its own: a mixture of four, all samples in one grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Conv1d(8, 12, 1)
        self.routing = nn.Linear(8, 4)
        self.kernels = nn.Parameter(torch.empty(4, 6 * 12 * 3))
        self.out = nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, length = x.shape
        kernels = (self.routing(x.mean(2)).sigmoid() @ self.kernels).view(batch * 6, 12, 3)
        mixed = F.conv1d(self.up(x).reshape(1, batch * 12, length), kernels, padding=1, groups=batch)
        return self.out(mixed.view(batch, 6, length))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 6), nn.Linear(8, 4)
        self.product = nn.Bilinear(6, 4, 10)
        self.out = nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.product(self.left(x), self.right(x)))


def sequence(x: Tensor) -> Tensor:
    return x.transpose(1, 2)


def weight_normed(layer: nn.Module, dim: int = 0) -> nn.Module:
    return parametrizations.weight_norm(layer, dim=dim)


EXPERTS = {"up", "down", "bias", "router.weight", "router.bias"}
"""The axis of the experts weighs more than that of their hidden units: the router lies along it too."""

# Layers on (4, 6, 8), and the parameters that "disjoint" axes cut.
LAYERS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "attention": (
        lambda: SelfAttention(True, False),
        {"attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight"},
    ),
    "attention, batch second": (
        lambda: SelfAttention(False, False),
        {"attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight"},
    ),
    "attention with weights": (
        lambda: SelfAttention(True, True),
        {"attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight"},
    ),
    "experts by einsum": (lambda: Experts("einsum"), EXPERTS),
    "experts by bmm": (lambda: Experts("bmm"), EXPERTS),
    "experts by baddbmm": (lambda: Experts("baddbmm"), EXPERTS),
    "lstm": (
        lambda: Then(nn.Linear(8, 10), nn.LSTM(10, 6, batch_first=True), nn.Linear(6, 2)),
        {"layers.0.weight", "layers.0.bias", "layers.1.weight_ih_l0"},
    ),
    "bidirectional gru": (
        lambda: Then(nn.Linear(8, 10), nn.GRU(10, 6, num_layers=2, bidirectional=True), nn.Linear(12, 2)),
        {"layers.0.weight", "layers.0.bias", "layers.1.weight_ih_l0", "layers.1.weight_ih_l0_reverse"},
    ),
    "lstm cell": (lambda: LoopedCell(nn.LSTMCell), set()),
    "weight norm": (
        lambda: Then(nn.Linear(8, 12), nn.ReLU(), weight_normed(nn.Linear(12, 3))),
        {"layers.0.weight", "layers.0.bias", "layers.2.parametrizations.weight.original1"},
    ),
    "weight norm over positions": (
        lambda: Then(sequence, weight_normed(nn.Conv1d(8, 12, 3), 2), nn.ReLU(), nn.Conv1d(12, 2, 1)),
        {"layers.1.parametrizations.weight.original1", "layers.1.bias", "layers.3.weight"},
    ),
    "spectral norm": (
        lambda: Then(parametrizations.spectral_norm(nn.Linear(8, 12)), nn.ReLU(), nn.Linear(12, 3)),
        {"layers.0.parametrizations.weight.original", "layers.0.bias", "layers.2.weight"},
    ),
    "standardised convolution": (
        lambda: Then(sequence, nn.Conv1d(8, 12, 1), nn.BatchNorm1d(12), StandardisedConvolution(12, 3, 3, bias=False)),
        {"layers.1.weight", "layers.1.bias", "layers.2.weight", "layers.2.bias", "layers.3.weight"},
    ),
    "conditional convolution": (
        lambda: Then(sequence, ConditionalConvolution()),
        {"layers.1.up.weight", "layers.1.up.bias", "layers.1.kernels"},
    ),
    "bilinear": (lambda: Pair(), {"left.weight", "left.bias", "product.weight"}),
    "embedding bag": (
        lambda: Then(lambda x: (x[..., 0] > 0).long(), nn.EmbeddingBag(5, 12), nn.Linear(12, 3)),
        {"layers.1.weight", "layers.2.weight"},
    ),
    "transposed grouped convolution": (
        lambda: Then(sequence, nn.Conv1d(8, 12, 1), nn.ConvTranspose1d(12, 8, 3, groups=2), nn.Conv1d(8, 2, 1)),
        {"layers.1.weight", "layers.1.bias", "layers.2.weight", "layers.2.bias", "layers.3.weight"},
    ),
}


def cut_of(axes: Any, replicas: int) -> dict[str, set[str]]:
    model = Branches({name: build() for name, (build, _cut) in LAYERS.items()})
    policy = NeuronPolicy(replicas=replicas, axes=axes)
    cut = check(model, (torch.randn(4, 6, 8, dtype=torch.double),), policy)
    found = {
        name: {p.removeprefix(f"branches.{name}.") for p in cut if p.startswith(f"branches.{name}.")} for name in LAYERS
    }
    return found


def test_layers() -> None:
    assert cut_of("disjoint", 2) == {name: cut for name, (_build, cut) in LAYERS.items()}


def test_layers_along_all_axes() -> None:
    found = cut_of("all", 3)
    assert "layers.1.weight_hh_l0" in found["lstm"] and "layers.1.weight_hh_l1_reverse" in found["bidirectional gru"]
    assert "cell.weight_hh" in found["lstm cell"]
