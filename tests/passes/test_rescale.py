"""Which operand of a product is an activation that meets a parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from sdp_compile.passes.rescale import contractions

aten = torch.ops.aten


def product(target: Any, x: torch.Tensor, weight: torch.Tensor, view: Any = None) -> list[tuple[str, int]]:
    """What is contracted where ``target`` takes an input and a parameter seen through ``view``."""
    graph = fx.Graph()
    operands = [graph.placeholder("x"), graph.get_attr("weight")]
    for node, value in zip(operands, (x, weight), strict=True):
        node.meta["val"] = value
    if view is not None:
        operands[1] = graph.call_function(view[0], (operands[1], *view[1:]))
        operands[1].meta["val"] = view[0](weight, *view[1:])
    node = graph.call_function(target, tuple(operands))
    return [(activation.name, dim) for activation, dim in contractions(node)]


@pytest.mark.parametrize(
    ("target", "x", "weight", "dim"),
    [
        (aten.linear.default, (2, 3, 4), (5, 4), 2),
        (aten.matmul.default, (2, 3, 4), (4, 5), 2),
        (aten.conv2d.default, (2, 3, 6, 6), (5, 3, 1, 1), 1),
        (aten.conv1d.default, (3, 6), (5, 3, 1), 0),
    ],
)
def test_the_dimension_that_is_summed_over(target: Any, x: Any, weight: Any, dim: int) -> None:
    assert product(target, torch.empty(x), torch.empty(weight)) == [("x", dim)]


@pytest.mark.parametrize("view", [(aten.t.default,), (aten.transpose.int, 0, 1), (aten.permute.default, [1, 0])])
def test_a_transposed_parameter_is_a_parameter(view: Any) -> None:
    assert product(aten.mm.default, torch.empty(2, 4), torch.empty(5, 4), view) == [("x", 1)]


def test_a_cast_parameter_is_a_parameter() -> None:
    view = (aten.to.dtype, torch.float64)
    assert product(aten.linear.default, torch.empty(2, 4), torch.empty(5, 4), view) == [("x", 1)]


def test_a_computed_weight_is_not_a_parameter() -> None:
    assert product(aten.linear.default, torch.empty(2, 4), torch.empty(5, 4), (aten.exp.default,)) == []
