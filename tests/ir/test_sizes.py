"""Numbers for free sizes: distinct ones for the analysis, those of the example for cost."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.export import Dim

from sdp_compile.ir.sizes import Sizes
from tests.graph_text import parse


def values(text: str) -> list[Any]:
    return [node.meta["val"] for node in parse(text).nodes if node.op == "placeholder"]


def test_fixed_sizes_stay() -> None:
    sizes = Sizes()
    assert sizes.distinct(torch.empty(3, 4)) == sizes.example(torch.empty(3, 4)) == (3, 4)


@given(st.integers(2, 64))
def test_a_free_size_equals_nothing_else_and_keeps_the_divisors_of_the_example(heads: int) -> None:
    """A batch of 12 must not be taken for 12 heads, and still splits into 3 x 4."""

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    x = torch.empty(12, heads)
    program = torch.export.export(Model(), (x,), dynamic_shapes={"x": {0: Dim.AUTO}}, strict=False)
    value = next(node.meta["val"] for node in program.graph.nodes if node.op == "placeholder")
    sizes = Sizes()
    assert sizes.example(value) == (12, heads)
    batch, fixed = sizes.distinct(value)
    assert fixed == heads and batch % 12 == 0 and batch > 10_000


def test_one_symbol_has_one_number_and_formulas_follow() -> None:
    x, y, z = values("""
        x: f32[n, 4, m] = placeholder
        y: f32[m, n] = placeholder
        z: f32[2 * n, 3 * n + m] = placeholder
        return""")
    sizes = Sizes()
    n, four, m = sizes.distinct(x)
    assert four == 4 and n != m and sizes.distinct(y) == (m, n)
    assert sizes.distinct(z) == (2 * n, 3 * n + m)
    first, _, second = sizes.example(x)
    assert sizes.example(z) == (2 * first, 3 * first + second)
    assert (n % first, m % second) == (0, 0)


def test_numbers_do_not_depend_on_which_is_asked_for_first() -> None:
    (x,) = values("x: f32[n, m] = placeholder\nreturn")
    one, other = Sizes(), Sizes()
    one.example(x)
    assert one.distinct(x) == other.distinct(x)


def test_a_size_that_depends_on_data_is_two_in_the_example() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.nonzero()

    program = torch.export.export(Model(), (torch.ones(5),), strict=False)
    value = next(node.meta["val"] for node in program.graph.nodes if "nonzero" in node.name)
    assert Sizes().example(value) == (2, 1)
