"""Blocks of real models as one counts them by hand, and the cases where a branch is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdp_compile.capture import capture
from sdp_compile.ir.effects import Effects
from sdp_compile.structure.blocks import zero
from sdp_compile.structure.blocks.block import Block, Blocks
from sdp_compile.structure.blocks.families import block_families
from sdp_compile.structure.blocks.finding import find_blocks
from tests import residual_models as models


def blocks_of(model: nn.Module, inputs: models.Inputs) -> Blocks:
    return find_blocks(capture(model, inputs))


# Counted by hand from the published architectures: blocks, per cent of the parameters in them, layers.
ZOO = {
    "resnet18": (64, 8, 94, 8),
    "resnet50": (64, 16, 81, 16),
    "swin_t": (64, 24, 92, 12),
    "vit_b_16": (224, 24, 98, 12),
    "convnext_tiny": (64, 18, 92, 18),
    "mobilenet_v3_small": (64, 6, 29, 6),
    "efficientnet_b0": (64, 9, 46, 9),
    "maxvit_t": (224, 55, 97, 33),
    "densenet121": (64, 0, 0, 0),
    "vgg11_bn": (64, 0, 0, 0),
}


@pytest.mark.parametrize("name", ZOO)
def test_torchvision_models_have_the_blocks_one_counts_by_hand(name: str) -> None:
    size, blocks, share, layers = ZOO[name]
    with torch.device("meta"):
        model, inputs = models.torchvision_model(name, size)
    found = blocks_of(model, inputs)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    inside = sum(sizes[name] for block in found.blocks for name in block.parameters)
    assert (len(found.blocks), len(found.layers)) == (blocks, layers)
    assert round(100 * inside / sum(sizes.values())) == share
    assert all(len(adds) == blocks for adds in found.residual_adds.values())


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("case", "names", "layers"),
    [
        (models.gpt2, [f"transformer.h.{i}.{part}" for i in (0, 1) for part in ("attn", "mlp")], 2),
        (models.llama, [f"model.layers.{i}.{part}" for i in (0, 1) for part in ("self_attn", "mlp")], 2),
        (models.bert, [f"bert.encoder.layer.{i}{part}" for i in (0, 1) for part in (".attention", "")], 2),
        (models.gpt_neox, [f"gpt_neox.layers.{i}.{part}" for i in (0, 1) for part in ("attention", "mlp")], 2),
        (
            models.t5,
            [f"encoder.block.{i}.layer.{j}" for i in (0, 1) for j in (0, 1)]
            + [f"decoder.block.{i}.layer.{j}" for i in (0, 1) for j in (0, 1, 2)],
            4,
        ),
    ],
)
def test_transformers_have_one_block_per_sublayer(case: models.Case, names: list[str], layers: int) -> None:
    found = blocks_of(*case())
    assert sorted(block.name for block in found.blocks) == sorted(names)
    assert len(found.layers) == layers


@pytest.mark.timeout(120)
def test_layers_that_share_their_parameters_are_one_block() -> None:
    found = blocks_of(*models.albert())
    assert [len(block.branches["train"]) for block in found.blocks] == [3, 3]
    assert len(found.residual_adds["train"]) == 6


@pytest.mark.timeout(120)
def test_buffers_and_batch_counters_of_a_branch_belong_to_it() -> None:
    found = blocks_of(*models.resnet18())
    first = found.blocks[0]
    assert (first.name, first.layer) == ("layer1.0", "layer1.0")
    expected = {f"layer1.0.bn{i}.{kind}" for i in (1, 2) for kind in ("running_mean", "running_var")}
    assert set(first.buffers) == expected | {f"layer1.0.bn{i}.num_batches_tracked" for i in (1, 2)}
    projected = found.blocks[2]
    assert not any("downsample" in name for name in projected.parameters)


class Net(nn.Module):
    """A module around one function of its inputs, with a few layers to use in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x: torch.Tensor) -> Any:
        raise NotImplementedError


def net(forward: Any) -> Net:
    return type("Net", (Net,), {"forward": forward})()


def found_in(forward: Any, dtype: torch.dtype = torch.float32) -> list[Block]:
    return list(blocks_of(net(forward).to(dtype), (torch.randn(4, 6, dtype=dtype),)).blocks)


def parameters_in(forward: Any) -> list[set[str]]:
    return [{name.partition(".")[0] for name in block.parameters} for block in found_in(forward)]


def nested(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    y = self.a(x)
    return x + self.norm(y + self.b(y))


def parallel(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    y = self.norm(x)
    return x + F.dropout(self.a(y) + torch.tanh(self.b(y)), 0.1, self.training)


def two_projections(self: Net, x: torch.Tensor) -> torch.Tensor:
    return self.norm(self.b(torch.relu(self.a(x))) + self.c(x))


def scaled(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    return x + self.scale * torch.sigmoid(self.a(x))


def gated(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    return x + torch.sigmoid(self.b(x)) * self.a(x)


def attention(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    y = self.a(x)
    return x + F.scaled_dot_product_attention(y[None], y[None], self.b(y)[None])[0]


def in_place_branch(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    y = self.b(torch.relu_(self.a(x)))
    y += x
    return torch.relu_(y)


def iterated(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    for _ in range(2):
        x = x + self.b(torch.relu(self.a(x)))
    return x


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (nested, [{"b"}]),
        (parallel, [{"a"}, {"b"}]),
        (two_projections, [{"a", "b"}]),
        (scaled, [{"scale", "a"}]),
        (gated, [{"a", "b"}]),
        (attention, [{"a", "b"}]),
        (in_place_branch, [{"a", "b"}]),
        (iterated, [{"a", "b"}]),
    ],
)
def test_branches_are_found(forward: Any, expected: list[set[str]]) -> None:
    assert parameters_in(forward) == expected


def no_zero(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    return x + torch.sigmoid(self.a(x))


def used_elsewhere(self: Net, x: torch.Tensor) -> Any:
    x = self.c(x)
    y = self.a(x)
    return x + y, y.sum()


def tied_outside(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    x = x + self.a(x)
    return F.linear(x, self.a.weight, self.a.bias).tanh()


def divided_by_itself(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    weight = self.a.weight / self.a.weight.norm()
    return x + F.linear(x, weight)


def broadcast(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x).mean(0, keepdim=True)
    return x + self.a(x.expand(4, 6))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("forward", [no_zero, used_elsewhere, tied_outside, divided_by_itself, broadcast])
def test_residual_adds_whose_branch_is_no_block(forward: Any) -> None:
    found = blocks_of(net(forward), (torch.randn(4, 6),))
    assert not found.blocks
    assert all(len(adds) == 1 for adds in found.residual_adds.values())


def gelu_by_hand(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.a(x)
    return self.b(0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3))))


def rotary(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.a(x)
    turned = torch.cat([-x[:, 3:], x[:, :3]], -1)
    angles = torch.arange(6, dtype=x.dtype)
    return self.b(x * angles.cos() + turned * angles.sin())


def bias(self: Net, x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ self.a.weight + self.a.bias) @ self.b.weight + self.scale


def interpolation(self: Net, x: torch.Tensor) -> torch.Tensor:
    gate, x = torch.sigmoid(self.a(x)), self.c(x)
    return gate * self.b(x) + (1 - gate) * x


def train_only(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    return x + self.a(x) if self.training else x * 2 + torch.sigmoid(self.a(x))


def scaled_twice(self: Net, x: torch.Tensor) -> torch.Tensor:
    x = self.c(x)
    return torch.add(x, torch.tanh(x), alpha=2)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("forward", [gelu_by_hand, rotary, bias, interpolation, scaled_twice, train_only])
def test_adds_that_make_no_block(forward: Any) -> None:
    assert not found_in(forward)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("forward", [gelu_by_hand, rotary, bias, scaled_twice])
def test_adds_without_a_branch_are_not_residual(forward: Any) -> None:
    found = blocks_of(net(forward), (torch.randn(4, 6),))
    assert not any(found.residual_adds.values())


@pytest.mark.timeout(120)
def test_embeddings_added_up_are_no_residual_add() -> None:
    class Embeddings(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.position, self.head = nn.Embedding(9, 6), nn.Embedding(9, 6), nn.Linear(6, 9)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            positions = (ids != 0).cumsum(1)  # RoBERTa's: both sides depend on the ids
            return self.head(self.token(ids) + self.position(positions))

    found = blocks_of(Embeddings(), (torch.ones(2, 4, dtype=torch.long),))
    assert not found.blocks
    assert not any(found.residual_adds.values())


@pytest.mark.timeout(120)
def test_an_activation_in_place_on_the_skip_path_feeds_both_sides() -> None:
    def preactivated(self: Net, x: torch.Tensor) -> torch.Tensor:
        x = self.c(x)
        return x + self.a(torch.relu_(x))

    model = net(preactivated)
    (block,) = blocks_of(model, (torch.randn(4, 6),)).blocks
    assert all("relu" not in name for name in block.nodes["train"])


@pytest.mark.timeout(120)
def test_families_count_bytes_and_flops_of_each_unit() -> None:
    model, inputs = models.gpt2()
    captured = capture(model, inputs)
    blocks = find_blocks(captured)
    flops = {node.name: 1.0 for node in captured.programs["train"].graph.nodes}
    (branches, layers), members = block_families(blocks, captured, flops)
    parameters = dict(model.named_parameters())
    assert (branches.units, layers.units, branches.kind) == (4, 2, "block")
    assert layers.unit_names == ("transformer.h.0", "transformer.h.1")
    for unit in range(layers.units):
        inside = sum(4 * p.numel() for name, p in parameters.items() if name.startswith(f"transformer.h.{unit}."))
        assert layers.unit_bytes[unit] == inside == sum(branches.unit_bytes[2 * unit : 2 * unit + 2])
        assert layers.unit_flops[unit] == sum(branches.unit_flops[2 * unit : 2 * unit + 2]) > 0
    assert members["layers"]["transformer.h.1.mlp.c_fc.weight"] == 1
    assert members["blocks"]["transformer.h.1.mlp.c_fc.weight"] == 3
    assert set(branches.parameters) == set(members["blocks"]) & set(parameters)


@pytest.mark.timeout(120)
def test_a_model_without_blocks_has_no_block_family() -> None:
    captured = capture(net(bias), (torch.randn(4, 6),))
    assert block_families(find_blocks(captured), captured) == ([], {})


@pytest.mark.timeout(120)
def test_the_number_of_visited_nodes_is_linear_in_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stack(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = x + layer(torch.tanh(x))
            return x

    visits = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal visits
            visits += 1
            return function(*args)

        return call

    # A search goes from a node to its sources, and the abstract run evaluates a node.
    monkeypatch.setattr(Effects, "sources", counted(Effects.sources))
    monkeypatch.setattr(zero, "evaluate", counted(zero.evaluate))
    counts = []
    for depth in (20, 40, 80):
        captured = capture(Stack(depth), (torch.randn(2, 4),))
        visits = 0
        assert len(find_blocks(captured).blocks) == depth
        counts.append(visits)
    assert 0 < counts[2] - counts[1] == 2 * (counts[1] - counts[0])
