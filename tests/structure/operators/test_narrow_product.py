"""Which matrix products compute with a weight in two parts, and that they give what PyTorch gives for the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from sdp_compile.structure.operators import lookup
from sdp_compile.structure.operators.parts import Channels, Split

aten = torch.ops.aten
FLAGS = [True, True, False, True]
"""Which of the four rows or columns of the weight are owned."""

# Calls, their operands by name, their keyword arguments, and whether they have a narrow form.
CASES: dict[str, tuple[Any, tuple[str, ...], dict[str, float], bool]] = {
    "matmul": (aten.matmul.default, ("x", "weight"), {}, True),
    "addmm": (aten.addmm.default, ("bias", "x", "weight"), {}, True),
    "addmm with beta": (aten.addmm.default, ("bias", "x", "weight"), {"beta": 2.0}, False),
    "addmm with alpha": (aten.addmm.default, ("bias", "x", "weight"), {"alpha": 2.0}, False),
    "addmm with a matrix": (aten.addmm.default, ("x", "x", "weight"), {}, False),
    "weight on the left": (aten.matmul.default, ("weight", "x"), {}, False),
    "batch of weights": (aten.matmul.default, ("x", "stack"), {}, False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dim", [0, 1])
def test_narrow_products(case: str, dim: int) -> None:
    target, names, options, expected = CASES[case]
    torch.manual_seed(0)
    values = {
        "x": torch.randn(4, 4),
        "weight": torch.randn(4, 4),
        "bias": torch.randn(4),
        "stack": torch.randn(2, 4, 4),
    }
    graph = fx.Graph()
    nodes = {name: graph.placeholder(name) for name in (*values, "owned", "rest")}
    for name, value in values.items():
        nodes[name].meta["val"] = value
    node = graph.call_function(target, tuple(nodes[name] for name in names), options)
    weight = nodes["stack" if "stack" in names else "weight"]
    narrow = lookup(target).narrow
    assert narrow is not None
    found = narrow(node, weight, Split(nodes["owned"], nodes["rest"], dim, Channels.of(FLAGS)))
    assert (found is not None) == expected
    if found is not None:
        function, arguments = found
        mask = torch.tensor(FLAGS)
        values["owned"], values["rest"] = (
            values["weight"].index_select(dim, index.nonzero()[:, 0]) for index in (mask, ~mask)
        )
        result = function(*fx.map_arg(arguments, lambda node: values[node.name]))
        torch.testing.assert_close(result, target(*(values[name] for name in names), **options))
