"""Which activation a product contracts with which weight, and along which dimension."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from sdp_compile.structure.operators import lookup

aten = torch.ops.aten
SHAPES = {"bias": (5,), "x": (3, 4), "batch": (2, 3, 4), "weight": (4, 5), "rows": (5, 4), "vector": (4,)}


@pytest.mark.parametrize(
    ("target", "names", "expected"),
    [
        (aten.mm.default, ("x", "weight"), [("x", "weight", 1), ("weight", "x", 0)]),
        (aten.addmm.default, ("bias", "x", "weight"), [("x", "weight", 1), ("weight", "x", 0)]),
        (aten.matmul.default, ("batch", "weight"), [("batch", "weight", 2), ("weight", "batch", 0)]),
        (aten.matmul.default, ("weight", "batch"), [("weight", "batch", 1), ("batch", "weight", 1)]),
        (aten.matmul.default, ("x", "vector"), [("x", "vector", 1), ("vector", "x", 0)]),
        (aten.linear.default, ("batch", "rows", "bias"), [("batch", "rows", 2)]),
    ],
)
def test_what_is_contracted(target: Any, names: tuple[str, ...], expected: list[tuple[str, str, int]]) -> None:
    graph = fx.Graph()
    nodes = [graph.placeholder(name) for name in names]
    for node in nodes:
        node.meta["val"] = torch.empty(SHAPES[node.name])
    find = lookup(target).contractions
    assert find is not None
    found = find(graph.call_function(target, tuple(nodes)))
    assert [(activation.name, weight.name, dim) for activation, weight, dim in found] == expected
