"""Corner cases of rules, each held against the masked original: what is cut, and that the result is exact."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from sdp_compile import NeuronPolicy
from sdp_compile.capture import capture
from sdp_compile.structure.analysis import analyse
from sdp_compile.structure.layout import Leaf
from tests.passes.programs import context_of
from tests.structure.operators.test_module_rules import StandardisedConvolution, Then, sequence
from tests.structure.operators.test_operator_rules import Branches, Function, Image, Vector, check, index

Tensor = torch.Tensor


def stack(h: Tensor) -> Tensor:
    """Twelve hidden units as three times four."""
    return h.view(-1, 3, 4)


# Functions of (4, 12) hidden units, and whether something needs all of them.
VECTORS: dict[str, tuple[Function, bool]] = {
    "take along rows of one column": (
        lambda h: h * torch.take_along_dim(h.sum(1, keepdim=True), (h.detach() > 0).long(), 0),
        False,
    ),
    "zeros around, and a row less": (lambda h: F.pad(h, (2, 4, -1, 0)), False),
    "sum over scattered units": (
        lambda h: h * torch.zeros_like(h).scatter_add(0, index(1, 1, 0, 2)[:, None].expand_as(h), h).sum(1, True),
        False,
    ),
    "sum over units that others were put into": (
        lambda h: h * h.index_put((index(1, 2),), h[:2].cos()).sum(1, True),
        True,
    ),
    "diagonals": (lambda h: h * torch.diagonal(stack(h), dim1=1, dim2=2).sum(1, True), True),
    "complex numbers": (lambda h: h * (torch.complex(h, h.sin()) * 1j).sum(1, True).imag, False),
    "largest of rows": (lambda h: h.amax(0, keepdim=True).expand(4, -1), False),
    "largest unit": (lambda h: h * h.amax(1, keepdim=True), True),
    "one hot": (lambda h: (F.one_hot((h.detach() > 0).long(), 2).to(h) * h.unsqueeze(-1)).flatten(1), False),
    "written at a place for each unit": (
        lambda h: h + torch.zeros(3, 5).to(h).index_add(0, h.argmax(0) % 3, torch.ones(12, 5).to(h)).sum(),
        True,
    ),
    "upside down": (lambda h: torch.flipud(h), False),
    "mirrored": (lambda h: torch.fliplr(h), False),
    "mean beside a frozen factor": (
        lambda h: stack(h).sort(1).values.sum((1, 2)).unsqueeze(1) * h - h.mean(1, keepdim=True),
        False,
    ),
    "with an empty slice": (lambda h: torch.cat([h, h[:, 3:3]], 1), False),
    "repeat interleave of all": (lambda h: h.repeat_interleave(2).view(4, 24), True),
    "transposed matrices": (lambda h: stack(h).mT.flatten(1), False),
    "cumulated over rows": (lambda h: h * h.cumsum(0).sum(1, keepdim=True), False),
    "cumulated over units": (lambda h: h * h.cumsum(1).sum(1, keepdim=True), True),
    "zero added": (lambda h: h * (h + 0).sum(1, keepdim=True), False),
    "one added": (lambda h: h * (h + 1).sum(1, keepdim=True), True),
    "einsum with rows left out": (lambda h: h * torch.einsum("...u,u->...", h.sin(), h.sum(0)).unsqueeze(1), False),
    "einsum of all units": (lambda h: h * torch.einsum("...u,...v->...", h, h.cos()).unsqueeze(1), True),
    "products of rows": (lambda h: h[:, 6:] * torch.linalg.vecdot(h[:, :6], h[:, :6].sin(), dim=0), True),
    "products of units": (lambda h: h * torch.linalg.vecdot(h, h.sin()).unsqueeze(1), False),
    "on a diagonal": (lambda h: h * torch.diag_embed(h).sum(1), True),
    "rows on a diagonal": (lambda h: h * torch.diag_embed(h.t()).sum(2).t(), False),
    "spectrum of rows": (lambda h: h * torch.fft.fftn(h.t(), s=(4,)).real.t(), False),
    "spectrum of units": (lambda h: h * torch.fft.fftn(h, s=(12,)).real, True),
    "attention of grouped heads": (
        lambda h: (
            F.scaled_dot_product_attention(
                h[:, :8].view(1, 4, 4, 2).transpose(1, 2),
                h[:, 8:].view(1, 4, 2, 2).transpose(1, 2),
                h[:, 8:].view(1, 4, 2, 2).transpose(1, 2).sin(),
                enable_gqa=True,
            )
            .transpose(1, 2)
            .reshape(4, 8)
        ),
        False,
    ),
    "cross product of sigmoids": (
        lambda h: (
            stack(h) + torch.linalg.cross(stack(h).sigmoid(), stack(h).sigmoid().square(), dim=1).sum(2, keepdim=True)
        ).flatten(1),
        True,
    ),
}

# Functions of images with eight hidden channels.
IMAGES: dict[str, tuple[Function, bool]] = {
    "maxima": (lambda h: F.max_pool2d(h, 2), False),
    "positions of maxima over channels": (
        lambda h: F.max_pool2d(h, 2) + F.max_pool2d(h, 2, return_indices=True)[1].to(h.dtype).sum(1, keepdim=True),
        True,
    ),
}


def whole_in(branch: Callable[[Function], nn.Module], cases: Mapping[str, Any], shape: tuple[int, ...]) -> set[str]:
    model = Branches({name: branch(function) for name, (function, _) in cases.items()})
    cut = check(model, (torch.randn(shape, dtype=torch.double),), NeuronPolicy())
    return {name for name in cases if f"branches.{name}.up.weight" not in cut}


def test_functions_of_vectors() -> None:
    assert whole_in(Vector, VECTORS, (4, 5)) == {name for name, (_, whole) in VECTORS.items() if whole}


def test_functions_of_images() -> None:
    assert whole_in(Image, IMAGES, (2, 3, 6, 6)) == {name for name, (_, whole) in IMAGES.items() if whole}


# Functions of two halves of the hidden units that meet index by index.
MEETINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "index put": lambda a, b: a.index_put((index(1, 2),), b[:2]),
}


def test_halves_that_meet_are_one_axis() -> None:
    model = Branches(
        {
            name: Vector(lambda h, function=function: function(h[:, :6], h[:, 6:]))  # type: ignore[misc]
            for name, function in MEETINGS.items()
        }
    )
    families = {family.name for family in analyse(capture(model, (torch.randn(4, 5),))).structure.axes}
    assert families == {f"branches.{name}.up.weight[0]" for name in MEETINGS}


class FromOnes(nn.Module):
    """An LSTM whose cells start at 1, so that a missing unit would not be 0."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        start = x.new_zeros(1, x.shape[0], 6)
        return self.out(self.lstm(x, (start, start + 1))[0])


class Looped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.cell, self.out = nn.Linear(8, 10), nn.GRUCell(10, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], 6)
        for step in self.up(x).unbind(1):
            state = self.cell(step, state)
        return self.out(state)


def over_samples(bias: bool) -> nn.Module:
    """A convolution whose samples are the hidden units, which are summed."""
    hidden = Then(lambda x: x[:, 0], nn.Linear(8, 12), lambda h: h.t().unsqueeze(1))
    return Then(hidden, nn.Conv1d(1, 4, 1, bias=bias), lambda h: h.sum(0).t(), nn.Linear(4, 2))


CELL = {"cell.weight_ih", "cell.weight_hh", "cell.bias_ih", "cell.bias_hh"}

PROJECTED = {f"layers.1.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")}

# Layers on (4, 6, 8), and the parameters that are cut along all axes.
LAYERS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "lstm from ones": (FromOnes, set()),
    "lstm with a projection": (
        lambda: Then(nn.Linear(8, 10), nn.LSTM(10, 6, proj_size=4, batch_first=True), nn.Linear(4, 2)),
        {"layers.0.weight", "layers.0.bias", "layers.2.weight", *PROJECTED},
    ),
    "cell after a layer": (Looped, {"up.weight", "up.bias", *CELL, "out.weight"}),
    "rnn along hidden units": (
        lambda: Then(lambda x: x[:, 0], nn.Linear(8, 12), lambda h: h.unsqueeze(-1), nn.RNN(1, 6), nn.Linear(6, 2)),
        {f"layers.3.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")} | {"layers.4.weight"},
    ),
    "standardised convolution of sigmoids": (
        lambda: Then(sequence, nn.Conv1d(8, 12, 1), nn.Sigmoid(), StandardisedConvolution(12, 3, 3, bias=False)),
        set(),
    ),
    "layer norm beside hidden units": (
        lambda: Then(sequence, nn.Conv1d(8, 12, 1), nn.LayerNorm(6), lambda h: h.sum(1), nn.Linear(6, 2)),
        set(),
    ),
    "samples without a bias": (
        lambda: over_samples(False),
        {"layers.0.layers.1.weight", "layers.0.layers.1.bias", "layers.1.weight", "layers.3.weight"},
    ),
    "samples with a bias": (lambda: over_samples(True), {"layers.1.weight", "layers.1.bias", "layers.3.weight"}),
    "weight norm of hidden units": (
        lambda: Then(sequence, parametrizations.weight_norm(nn.Conv1d(8, 12, 1)), nn.ReLU(), nn.Conv1d(12, 3, 1)),
        {"layers.1.bias", "layers.1.parametrizations.weight.original0", "layers.3.weight"},
    ),
}


def test_layers() -> None:
    model = Branches({name: build() for name, (build, _) in LAYERS.items()})
    cut = check(model, (torch.randn(4, 6, 8, dtype=torch.double),), NeuronPolicy(replicas=3, axes="all"))
    for name, (_, expected) in LAYERS.items():
        prefix = f"branches.{name}."
        assert {p.removeprefix(prefix) for p in cut if p.startswith(prefix)} == expected, name


def test_a_cell_sums_over_features_that_are_0_where_its_weight_is_not() -> None:
    text = """
        x: f32[3, 4] = placeholder
        state: f32[3, 5] = placeholder
        up: f32[6, 4] = get_attr[up.weight]
        stored: f32[5, 6] = get_attr[stored]
        hidden: f32[5, 5] = get_attr[cell.weight_hh]
        features: f32[3, 6] = aten.linear(x, up)
        weight: f32[5, 6] = aten.sigmoid(stored)
        cell: f32[3, 5] = aten.rnn_tanh_cell(features, state, weight, hidden)
        return cell"""
    layouts = context_of(text, NeuronPolicy()).analysis.structure.layouts
    assert layouts["up.weight"] == (Leaf(6, "up.weight[0]"), Leaf(4))
    assert layouts["stored"] == (Leaf(5), Leaf(6, "up.weight[0]"))
