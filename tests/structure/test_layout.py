"""What a worker keeps of a dimension, against the units that each index runs through, listed one by one."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.structure.layout import (
    Layout,
    Leaf,
    Product,
    Sum,
    families,
    kept_indices,
    kept_size,
    leaves,
    restrict,
    spread,
)

UNITS = {"a": 3, "b": 2, "c": 4}
OWNED = {"a": np.array([0, 2]), "b": np.array([1])}
"""Nobody cuts ``c``."""

LEAVES = st.one_of(
    st.builds(Leaf, st.integers(1, 3)), st.sampled_from([Leaf(size, family) for family, size in UNITS.items()])
)
LAYOUTS: st.SearchStrategy[Layout] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Product, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Sum, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=5,
)
Path = tuple[tuple[str, int], ...]


def paths(layout: Layout) -> list[Path]:
    """For each index of a dimension, the units that it runs through."""
    if isinstance(layout, Leaf):
        return [() if layout.family is None else ((layout.family, unit),) for unit in range(layout.size)]
    if isinstance(layout, Sum):
        return [path for part in layout.parts for path in paths(part)]
    return [sum(combined, ()) for combined in product(*map(paths, layout.factors))]


def kept(path: Path) -> bool:
    return all(unit in OWNED.get(family, range(UNITS[family])) for family, unit in path)


@given(LAYOUTS)
def test_kept_indices_are_those_whose_units_are_all_owned(layout: Layout) -> None:
    expected = [number for number, path in enumerate(paths(layout)) if kept(path)]
    assert layout.size == len(paths(layout))
    assert kept_indices(layout, OWNED).tolist() == expected
    assert kept_size(layout, {family: len(own) for family, own in OWNED.items()}) == len(expected)
    assert kept_size(layout, {}) == layout.size


@given(LAYOUTS)
def test_spread_multiplies_the_numbers_of_the_units_of_an_index(layout: Layout) -> None:
    numbers = {"a": np.array([2.0, 3.0, 5.0]), "b": np.array([7.0, 11.0])}
    expected = [prod(numbers[family][unit] for family, unit in path if family in numbers) for path in paths(layout)]
    np.testing.assert_array_equal(spread(layout, numbers), expected)


@given(LAYOUTS, st.sets(st.sampled_from("abc")))
def test_a_restricted_layout_runs_through_the_units_of_some_families(layout: Layout, cut: set[str]) -> None:
    found = restrict(layout, cut)
    assert paths(found) == [tuple(step for step in path if step[0] in cut) for path in paths(layout)]
    assert set(families(found)) == {family for path in paths(layout) for family, _ in path} & cut
    if not families(found):
        assert isinstance(found, Leaf)


def test_restricting_joins_what_is_no_longer_cut() -> None:
    a, b, whole = Leaf(3, "a"), Leaf(2, "b"), Leaf(5)
    assert restrict(Product((b, whole, a, b, whole)), {"a"}) == Product((Leaf(10), a, Leaf(10)))
    assert restrict(Sum((b, whole, a, b, whole)), {"a"}) == Sum((Leaf(7), a, Leaf(7)))
    assert restrict(Sum((a, b)), {"a", "b"}) == Sum((a, b))
    assert restrict(Product((a, b)), {"a", "b"}) == Product((a, b))


def test_leaves_and_families_stand_in_order() -> None:
    layout = Product((Sum((Leaf(3, "a"), Leaf(1))), Leaf(2, "b"), Leaf(3, "a")))
    assert list(leaves(layout)) == [Leaf(3, "a"), Leaf(1), Leaf(2, "b"), Leaf(3, "a")]
    assert families(layout) == ["a", "b"]
