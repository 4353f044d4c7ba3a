"""Random layouts of a dimension, and the units that each of its indices runs through as the oracle."""

from __future__ import annotations

from hypothesis import strategies as st

from sdp_compile.structure.layout import Layout, Leaf, Product, Sum

Units = frozenset[tuple[str, int]]
"""Pairs of a family and one of its units."""

FAMILIES = {"a": 2, "b": 3, "c": 4}

leaves = st.one_of(
    st.integers(1, 3).map(Leaf),
    st.sampled_from(sorted(FAMILIES)).map(lambda name: Leaf(FAMILIES[name], name)),
)
layouts = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=2).map(lambda factors: Product(tuple(factors))),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Sum(tuple(parts))),
    ),
    max_leaves=4,
)


def units_of(layout: Layout) -> list[Units]:
    """For each index of the dimension the units that it runs through."""
    if isinstance(layout, Leaf):
        return [frozenset([(layout.family, unit)] if layout.family else []) for unit in range(layout.size)]
    if isinstance(layout, Sum):
        return [index for part in layout.parts for index in units_of(part)]
    combined: list[Units] = [frozenset()]
    for factor in layout.factors:
        combined = [outer | inner for outer in combined for inner in units_of(factor)]
    return combined
