"""Owners of tensor elements, against set arithmetic element by element over random layouts."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.ownership.elements import ElementOwners
from sdp_compile.ownership.owners import Ownership, owner_set
from sdp_compile.structure.layout import Layout, Leaf, Product, Sum
from tests.ownership.layouts import FAMILIES, Units, layouts, units_of

WORKERS = 4
members = st.sets(st.integers(0, WORKERS - 1), min_size=1).map(owner_set)
ownerships = st.fixed_dictionaries(
    {name: st.lists(members, min_size=units, max_size=units).map(Ownership.of) for name, units in FAMILIES.items()}
)


def owners_of(units: Units, ownership: dict[str, Ownership]) -> tuple[int, ...]:
    """The workers that own all of these units."""
    common = set(range(WORKERS))
    for family, unit in units:
        common &= set(ownership[family][unit])
    return tuple(sorted(common))


@given(layouts, ownerships)
def test_parts_and_kept_indices_of_a_dimension(layout: Layout, ownership: dict[str, Ownership]) -> None:
    elements = ElementOwners(ownership, WORKERS)
    oracle = [owners_of(units, ownership) for units in units_of(layout)]
    parts = elements.parts(layout)
    assert [owners for owners, _ in parts] == list(dict.fromkeys(oracle))
    for owners, index in parts:
        assert index.tolist() == [number for number, expected in enumerate(oracle) if expected == owners]
    for rank in range(WORKERS):
        assert elements.kept(layout, rank).tolist() == [n for n, owners in enumerate(oracle) if rank in owners]


@settings(deadline=None)
@given(st.lists(layouts, max_size=3), ownerships, st.none() | members)
def test_pieces_tile_a_tensor_by_owner_set(dims: list[Layout], ownership: dict[str, Ownership], block: object) -> None:
    whole = tuple(range(WORKERS)) if block is None else block
    pieces = ElementOwners(ownership, WORKERS).pieces("w", tuple(dims), block)  # type: ignore[arg-type]
    seen = np.zeros([layout.size for layout in dims], dtype=int)
    owners: dict[tuple[int, ...], tuple[int, ...]] = {}
    for piece in pieces:
        assert piece.name == "w" and all((np.diff(index) > 0).all() for index in piece.index)
        assert piece.shape == seen[np.ix_(*piece.index)].shape and piece.numel == seen[np.ix_(*piece.index)].size
        seen[np.ix_(*piece.index)] += 1
        owners |= dict.fromkeys(itertools.product(*(index.tolist() for index in piece.index)), piece.owners)
    assert (seen == 1).all()
    for position in itertools.product(*(range(layout.size) for layout in dims)):
        units = [units_of(layout)[index] for layout, index in zip(dims, position, strict=True)]
        expected = set(owners_of(frozenset().union(*units), ownership)) & set(whole)  # type: ignore[call-overload]
        assert owners[position] == tuple(sorted(expected))


def test_layers_with_equal_ownership_share_their_index_lists() -> None:
    halves = Ownership.of([(0,), (1,)])
    elements = ElementOwners({"one": halves, "two": Ownership.of([(0,), (1,)]), "other": halves}, 2)
    fused = [Sum((Product((Leaf(2, name), Leaf(3))), Leaf(4))) for name in ("one", "two", "other")]
    assert elements.kept(fused[0], 1) is elements.kept(fused[1], 1) is elements.kept(fused[2], 1)
    assert elements.parts(fused[0]) is elements.parts(fused[1])


def test_a_tensor_that_nothing_cuts_is_one_piece_of_all_workers() -> None:
    (piece,) = ElementOwners({}, 3).pieces("scale", (Leaf(2), Leaf(5)))
    assert piece.owners == (0, 1, 2) and piece.shape == (2, 5)
    (scalar,) = ElementOwners({}, 3).pieces("count", ())
    assert scalar.shape == () and scalar.numel == 1
