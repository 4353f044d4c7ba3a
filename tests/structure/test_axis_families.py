"""Bytes, conflicts and positions of families, counted element by element."""

from __future__ import annotations

from itertools import combinations, product

import torch

from sdp_compile.ir.program import StateTensor
from sdp_compile.structure.axis_families import axis_families, conflicts
from sdp_compile.structure.layout import Layout, Leaf, Product, Sum

A, B, C = Leaf(3, "a"), Leaf(2, "b"), Leaf(4, "c")

# The layouts of the dimensions of each tensor.
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "first.weight": (Product((A, Leaf(2))), Leaf(5)),
    "second.weight": (Sum((A, Leaf(5), Product((B, A)))), Product((Leaf(7), B))),
    "second.bias": (Product((Sum((B, Leaf(1))), C)),),
    "inner.deep.weight": (Product((A, Sum((C, Product((B, B)))))), Sum((C, C))),
    "statistics": (Product((C, A)), A),
}
STATE = {
    name: StateTensor(
        tuple(layout.size for layout in dims),
        torch.float64 if name == "second.bias" else torch.float32,
        "buffer" if name == "statistics" else "parameter",
        name != "statistics",
    )
    for name, dims in LAYOUTS.items()
}
PARAMETERS = {name: dims for name, dims in LAYOUTS.items() if STATE[name].kind == "parameter"}
Path = tuple[str, ...]


def paths(layout: Layout) -> list[Path]:
    """For each index of a dimension, the families that it runs through, as often as it does."""
    if isinstance(layout, Leaf):
        return [() if layout.family is None else (layout.family,)] * layout.size
    if isinstance(layout, Sum):
        return [path for part in layout.parts for path in paths(part)]
    return [sum(combined, ()) for combined in product(*map(paths, layout.factors))]


def elements(dims: tuple[Layout, ...]) -> list[Path]:
    return [sum(combined, ()) for combined in product(*map(paths, dims))]


def test_bytes_are_those_of_the_elements_that_run_through_a_family() -> None:
    families = axis_families(LAYOUTS, STATE, {"a": 30.0}, ("second.bias", "second.weight", "first.weight"))
    assert [family.name for family in families] == ["a", "b", "c"]
    for family in families:
        through = {name: sum(family.name in path for path in elements(dims)) for name, dims in PARAMETERS.items()}
        nbytes = sum(count * STATE[name].dtype.itemsize for name, count in through.items())
        assert family.units == {"a": 3, "b": 2, "c": 4}[family.name]
        assert family.unit_bytes == (nbytes // family.units,) * family.units
        assert family.parameters == tuple(name for name, count in through.items() if count)
    assert [family.unit_flops for family in families] == [(10.0,) * 3, (0.0,) * 2, (0.0,) * 4]


def test_a_family_stands_at_its_first_parameter_and_its_earliest_use() -> None:
    a, b, c = axis_families(LAYOUTS, STATE, {}, ("other", "second.bias", "first.weight", "second.weight"))
    assert [family.module_path for family in (a, b, c)] == ["first", "second", "second"]
    # a is not in second.bias; inner.deep.weight is in no graph and counts as the first.
    assert [family.depth for family in (a, b, c)] == [0, 0, 0]
    late = {name: dims for name, dims in LAYOUTS.items() if name != "inner.deep.weight"}
    a, b, c = axis_families(late, STATE, {}, ("other", "second.bias", "first.weight", "second.weight"))
    assert [family.depth for family in (a, b, c)] == [2, 1, 1]


def test_outer_counts_the_factors_before_a_family() -> None:
    assert [family.outer for family in axis_families(LAYOUTS, STATE, {}, ())] == [1, 2, 1]


def test_conflicts_are_pairs_that_meet_in_one_element() -> None:
    expected = {
        frozenset(pair) for dims in PARAMETERS.values() for path in elements(dims) for pair in combinations(path, 2)
    }
    assert conflicts(LAYOUTS, STATE) == expected
    assert conflicts({"statistics": LAYOUTS["statistics"]}, STATE) == frozenset()
