"""Units of a plan by the elements of its tensors, as errors name them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sdp_compile as sdp
from sdp_compile.checkpoint.manifest import LayoutEntry, _is_possible
from sdp_compile.checkpoint.units import _entry, _touched, blocks_of, layouts_of, merged
from sdp_compile.structure.layout import Layout, Leaf, Product, Sum, kept_indices, leaves
from tests.runtime.models import batch, build

LEAVES = st.builds(Leaf, st.integers(1, 4), st.sampled_from([None, "a", "b", "c"]))
LAYOUTS: st.SearchStrategy[Layout] = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(Product, st.lists(inner, min_size=1, max_size=3).map(tuple))
        | st.builds(Sum, st.lists(inner, min_size=1, max_size=3).map(tuple))
    ),
    max_leaves=4,
)


def sizes(layout: Layout) -> dict[str, int]:
    return {leaf.family: leaf.size for leaf in leaves(layout) if leaf.family is not None}


@settings(max_examples=300, deadline=None)
@given(layout=LAYOUTS, data=st.data())
def test_units_are_those_without_which_the_elements_are_not_kept(layout: Layout, data: st.DataObject) -> None:
    found = [leaf for leaf in leaves(layout) if leaf.family is not None]
    if len({leaf.family: leaf.size for leaf in found}) < len({(leaf.family, leaf.size) for leaf in found}):
        return  # a family has one size
    start = data.draw(st.integers(0, layout.size - 1))
    stop = data.draw(st.integers(start + 1, layout.size))
    everything = {family: np.arange(size) for family, size in sizes(layout).items()}
    expected = {
        (family, unit)
        for family, units in everything.items()
        for unit in units.tolist()
        if len(
            set(range(start, stop)) - set(kept_indices(layout, {**everything, family: np.delete(units, unit)}).tolist())
        )
    }
    entry = _entry(layout)
    assert _is_possible(entry)
    touched = {(family, unit) for family, first, end in _touched(entry, start, stop) for unit in range(first, end)}
    assert touched == expected


def test_they_are_written_as_ranges() -> None:
    assert merged([("a", 3, 4), ("b", 0, 1), ("a", 0, 2), ("a", 1, 3), ("a", 7, 9)]) == {"a": "0-3, 7-8", "b": "0"}


def nested(depth: int) -> LayoutEntry:
    result = LayoutEntry(size=2)
    for _ in range(depth):
        result = LayoutEntry(size=2, sum=(result,))
    return result


@pytest.mark.parametrize(
    "layout",
    [
        LayoutEntry(size=2, family="a", sum=(LayoutEntry(size=2),)),
        LayoutEntry(size=4, product=(LayoutEntry(size=2), LayoutEntry(size=3))),
        LayoutEntry(size=0, product=(LayoutEntry(size=2), LayoutEntry(size=0))),
        LayoutEntry(size=4, sum=(LayoutEntry(size=2), LayoutEntry(size=3))),
        nested(100),
    ],
)
def test_other_layouts_are_refused(layout: LayoutEntry) -> None:
    assert not _is_possible(layout) and _is_possible(nested(10))


def elements(index: Any) -> Iterator[tuple[int, ...]]:
    return product(*(dim.tolist() for dim in index))


@pytest.mark.parametrize(("name", "kind"), [("transformer", "neuron"), ("cnn", "neuron"), ("cnn", "block")])
def test_the_units_of_a_plan_have_the_owners_of_their_elements(name: str, kind: str) -> None:
    policy = {"neuron": sdp.NeuronPolicy, "block": sdp.BlockPolicy}[kind](coverage=0.5)
    plan = sdp.plan(build(name), policy, (batch(name, 0),), workers=4)
    layouts, blocks = layouts_of(plan), blocks_of(plan)
    cut = [key for key in plan.state if plan.is_cut(key)]
    assert set(layouts) == set(cut) and cut
    generator = torch.Generator().manual_seed(0)
    for key in cut:
        for piece in plan.pieces(key):
            if not piece.numel:
                continue
            element = [int(dim[int(torch.randint(len(dim), (), generator=generator))]) for dim in piece.index]
            units = [
                one for entry, at in zip(layouts[key], element, strict=True) for one in _touched(entry, at, at + 1)
            ]
            units += [(family, unit, unit + 1) for family, unit in [blocks[key]]] if key in blocks else []
            owners = set(range(4)).intersection(*(plan.owners(family)[unit] for family, unit, _ in units))
            assert owners == set(piece.owners), (key, element)
            assert math.prod(end - first for _, first, end in units) == 1
