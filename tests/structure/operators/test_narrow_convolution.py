"""Which convolutions compute with a weight in two parts, and that they give what PyTorch gives for the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from sdp_compile.structure.operators import lookup
from sdp_compile.structure.operators.parts import Channels, Split

aten = torch.ops.aten
PLAIN, NAMED, TRANSPOSED = aten.conv2d.default, aten.conv2d.padding, aten.conv_transpose2d.input


def test_channels_are_stretches_of_owned_and_other_indices() -> None:
    for runs, text in (((2, 1, 1), "xx.x"), ((0, 2, 3), "..xxx"), ((4,), "xxxx"), ((1, 3), "x...")):
        flags = [letter == "x" for letter in text]
        assert Channels(runs).flags() == flags and Channels.of(flags) == Channels(runs)


@dataclass
class Case:
    """A convolution; of its weight, the indices with an x along one dimension are owned."""

    target: Any
    weight: tuple[int, ...]
    owned: str
    dim: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    x: tuple[int, ...] = (2, 4, 5, 6)


NARROW = {
    "output channels": Case(PLAIN, (3, 4, 3, 2), "x.x", options={"stride": [2, 1], "padding": [1, 0]}),
    "input channels": Case(PLAIN, (3, 4, 3, 2), ".xx.", dim=1, options={"dilation": [1, 2]}),
    "one number for both directions": Case(PLAIN, (3, 4, 3, 3), "xx.", options={"padding": [1], "stride": [2]}),
    "depthwise": Case(PLAIN, (4, 1, 3, 3), "xx.x", options={"groups": 4}),
    "whole groups": Case(PLAIN, (6, 2, 2, 2), "xxx...", options={"groups": 2}),
    "the second group": Case(PLAIN, (8, 1, 2, 2), "..xx....", options={"groups": 4}),
    "the same of each group": Case(PLAIN, (6, 2, 2, 2), "x.xx.x", options={"groups": 2}),
    "inputs of each group": Case(PLAIN, (6, 2, 2, 2), ".x", dim=1, options={"groups": 2}),
    "same padding": Case(NAMED, (3, 4, 3, 5), "x..", options={"padding": "same", "dilation": [2, 1]}),
    "no padding": Case(NAMED, (3, 4, 2, 2), "x..", options={"padding": "valid"}),
    "transposed output channels": Case(TRANSPOSED, (4, 3, 3, 3), "x.x", dim=1, options={"stride": [2, 2]}),
    "transposed input channels": Case(
        TRANSPOSED, (4, 3, 3, 3), "x..x", options={"stride": [2, 2], "padding": [1], "output_padding": [0, 1]}
    ),
}

WHOLE = {
    "unequal parts of groups": Case(PLAIN, (6, 2, 2, 2), "xx...x", options={"groups": 2}),
    "one group in part": Case(PLAIN, (6, 2, 2, 2), "x.....", options={"groups": 2}),
    "positions of the kernel": Case(PLAIN, (3, 4, 3, 3), "x.x", dim=2),
    "transposed groups": Case(TRANSPOSED, (4, 3, 2, 2), "xx..", options={"groups": 2}),
    "uneven padding": Case(NAMED, (3, 4, 2, 3), "x..", options={"padding": "same"}),
    "without a batch": Case(PLAIN, (3, 4, 3, 3), "x..", x=(4, 5, 6)),
}


def narrow_call(case: Case) -> tuple[Any, dict[str, Tensor]]:
    """Returns the narrow form and the values of its operands by name."""
    torch.manual_seed(0)
    outputs = case.weight[1] if case.target is TRANSPOSED else case.weight[0]
    values = {"x": torch.randn(case.x), "weight": torch.randn(case.weight), "bias": torch.randn(outputs)}
    values = {name: value.double().requires_grad_() for name, value in values.items()}
    graph = fx.Graph()
    nodes = {name: graph.placeholder(name) for name in (*values, "owned", "rest")}
    for name, value in values.items():
        nodes[name].meta["val"] = value
    node = graph.call_function(case.target, (nodes["x"], nodes["weight"], nodes["bias"]), case.options)
    mask = torch.tensor([letter == "x" for letter in case.owned])
    for name, index in (("owned", mask), ("rest", ~mask)):
        part = values["weight"].detach().index_select(case.dim, index.nonzero()[:, 0])
        values[name] = part.requires_grad_(name == "owned")
    narrow = lookup(case.target).narrow
    assert narrow is not None
    split = Split(nodes["owned"], nodes["rest"], case.dim, Channels.of(mask.tolist()))
    return narrow(node, nodes["weight"], split), values


@pytest.mark.parametrize("name", NARROW)
def test_a_convolution_with_a_weight_in_two_parts(name: str) -> None:
    case = NARROW[name]
    found, values = narrow_call(case)
    function, arguments = found
    result = function(*fx.map_arg(arguments, lambda node: values[node.name]))
    expected = case.target(values["x"], values["weight"], values["bias"], **case.options)
    torch.testing.assert_close(result, expected)
    gradient = torch.randn_like(expected)
    mine = torch.autograd.grad(result, [values[name] for name in ("x", "owned", "bias")], gradient)
    theirs = list(torch.autograd.grad(expected, [values[name] for name in ("x", "weight", "bias")], gradient))
    chosen = torch.tensor([number for number, letter in enumerate(case.owned) if letter == "x"])
    theirs[1] = theirs[1].index_select(case.dim, chosen)
    torch.testing.assert_close(mine, tuple(theirs))


@pytest.mark.parametrize("name", WHOLE)
def test_a_convolution_that_takes_its_weight_whole(name: str) -> None:
    assert narrow_call(WHOLE[name])[0] is None
