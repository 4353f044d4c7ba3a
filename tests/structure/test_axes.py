"""Axes against a brute-force oracle: which elements of a flat index range are cut together."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.ir.sizes import FreeSize
from sdp_compile.structure import axes, views
from sdp_compile.structure.axes import Axis, Dim, Reason

WHY = Reason("test")


def atom(size: int) -> Dim:
    return axes.fresh(size)


def roots(dim: Dim) -> list[Axis]:
    return list(axes.expand(dim))


def labels(dim: Dim) -> list[tuple[object, ...]]:
    """For each index of a dimension, the units of unfrozen axes that it runs through."""
    factors = []
    for root in roots(dim):
        if root.parts is not None and root.frozen is None:
            factors.append([label for part in root.parts for label in labels(part)])
        else:
            factors.append([() if root.frozen else ((id(root), unit),) for unit in range(root.size)])
    result: list[tuple[object, ...]] = [()]
    for factor in factors:
        result = [(*outer, *inner) for outer in result for inner in factor]
    return result


def test_a_size_of_one_has_no_axis() -> None:
    assert atom(1) == ()


def test_a_view_splits_a_dimension_into_a_product() -> None:
    qkv = atom(24)
    (three, heads, inner), _ = views.regroup([qkv], [3, 4, 2], WHY)
    assert [axes.size(d) for d in (three, heads, inner)] == [3, 4, 2]
    assert roots(qkv) == [*roots(three), *roots(heads), *roots(inner)]


def test_unify_looks_through_a_later_refinement() -> None:
    a, b = atom(12), atom(12)
    axes.unify(a, b, WHY)
    views.regroup([a], [3, 4], WHY)
    (outer, _), _ = views.regroup([b], [3, 4], WHY)
    assert roots(outer)[0].size == 3
    assert roots(a) == roots(b)


def test_sums_are_cut_at_each_others_boundaries() -> None:
    a, b = atom(10), atom(10)
    first, _ = axes.split(a, [4, 6], WHY)
    axes.split(b, [6, 4], WHY)
    axes.unify(a, b, WHY)
    assert labels(a) == labels(b)
    assert len(set(labels(a))) == 10
    assert labels(first) == labels(b)[:4]


def test_rotating_halves_makes_them_one_axis() -> None:
    """cat(-x[half:], x[:half]) + x, as rotary embeddings do."""
    x = atom(8)
    low, high = axes.split(x, [4, 4], WHY)
    axes.unify(axes.concatenate([high, low]), x, WHY)
    assert labels(x)[:4] == labels(x)[4:]


def test_freezing_reaches_the_parts_and_no_further() -> None:
    x = atom(8)
    low, high = axes.split(x, [4, 4], WHY)
    axes.freeze(low, WHY)
    assert roots(low)[0].frozen and not roots(high)[0].frozen
    axes.freeze(x, WHY)
    assert roots(high)[0].frozen


def test_a_refinement_of_a_frozen_axis_is_frozen() -> None:
    x = atom(8)
    axes.freeze(x, WHY)
    (outer, inner), _ = views.regroup([x], [2, 4], WHY)
    assert roots(outer)[0].frozen and roots(inner)[0].frozen


def test_factors_share_their_outer_and_inner_units_and_freeze_between() -> None:
    a, b = atom(24), atom(24)
    views.regroup([a], [6, 4], WHY)
    views.regroup([b], [4, 6], WHY)
    axes.unify(a, b, WHY)
    for dim in (a, b):
        assert [(root.size, root.frozen is not None) for root in roots(dim)] == [
            (2, False),
            (3 if dim is a else 2, True),
            (2 if dim is a else 3, True),
            (2, False),
        ]
    assert labels(a) == labels(b)


def test_factors_without_common_units_freeze() -> None:
    a, b = atom(15), atom(15)
    views.regroup([a], [3, 5], WHY)
    views.regroup([b], [5, 3], WHY)
    axes.unify(a, b, WHY)
    assert all(root.frozen for root in (*roots(a), *roots(b)))


def test_a_split_inside_of_an_inner_factor_freezes() -> None:
    x = (*atom(4), *atom(3))
    axes.split(x, [5, 7], WHY)
    assert all(root.frozen for root in roots(x))


def test_channel_shuffle_ends_in_consistent_axes() -> None:
    """view(g, c) -> transpose -> chunk(2), unified with itself as in ShuffleNet."""
    x = atom(12)
    (groups, channels), _ = views.regroup([x], [2, 6], WHY)
    shuffled = (*channels, *groups)
    low, high = axes.split(shuffled, [6, 6], WHY)
    assert axes.size(low) == axes.size(high) == 6
    assert set(map(frozenset, labels(shuffled))) == set(map(frozenset, labels(x)))


@given(st.data())
def test_regrouping_preserves_every_element(data: st.DataObject) -> None:
    factors = data.draw(st.lists(st.sampled_from([2, 3, 4, 6]), min_size=1, max_size=4))
    sizes: list[int] = []
    for factor in factors:  # merge neighbours at random
        if sizes and data.draw(st.booleans()):
            sizes[-1] *= factor
        else:
            sizes.append(factor)
    source = atom(prod(factors)) if data.draw(st.booleans()) else tuple(a for f in factors for a in atom(f))
    dims, _ = views.regroup([source], sizes, WHY)
    assert [axes.size(dim) for dim in dims] == sizes
    whole = tuple(axis for dim in dims for axis in dim)
    if not any(root.frozen for root in roots(source)):
        assert labels(whole) == labels(source)


@given(st.data())
def test_unified_dimensions_have_equal_labels(data: st.DataObject) -> None:
    """Whatever refinements came before, two unified dimensions are cut alike at every index, or not at all."""
    size = data.draw(st.sampled_from([12, 24]))
    dims = [atom(size), atom(size)]
    for dim in dims:
        for _ in range(data.draw(st.integers(0, 2))):
            if data.draw(st.booleans()):
                outer = data.draw(st.sampled_from([d for d in range(2, size) if size % d == 0]))
                views.regroup([dim], [outer, size // outer], WHY)
            else:
                cut = data.draw(st.integers(1, size - 1))
                axes.split(dim, [cut, size - cut], WHY)
    axes.unify(dims[0], dims[1], WHY)
    left, right = labels(dims[0]), labels(dims[1])
    assert left == right
    if data.draw(st.booleans()):  # a refinement after the fact must keep them equal
        axes.split(dims[0], [size // 2, size - size // 2], WHY)
        assert labels(dims[0]) == labels(dims[1])


def test_views_that_do_not_divide_freeze_only_their_group() -> None:
    a, b = atom(9), atom(5)
    views.regroup([a, atom(4), b], [4, 9, 5], WHY)
    assert all(root.frozen for root in roots(a))
    assert not roots(b)[0].frozen


def test_views_follow_the_units_that_both_divisions_share() -> None:
    a, b = atom(6), atom(4)
    (outer, inner), _ = views.regroup([a, b], [4, 6], WHY)
    assert labels((*a, *b)) == labels((*outer, *inner))
    assert [root.size for root in roots((*a, *b)) if not root.frozen] == [2, 2]


def test_a_fixed_size_says_what_free_sizes_multiply_to() -> None:
    channels, weight = atom(16), atom(1024)
    height, width = axes.fresh(FreeSize(80056), WHY), axes.fresh(FreeSize(80072), WHY)
    axes.unify((*channels, *height, *width), weight, WHY)
    assert roots(weight)[0] is roots(channels)[0] and not roots(channels)[0].frozen
    assert [root.size for root in roots(weight)] == [16, 64] and roots(weight)[1].frozen


def test_fixed_sizes_that_differ_are_no_one_dimension() -> None:
    a, b = atom(16), atom(8)
    axes.unify(a, b, WHY)
    assert roots(a)[0].frozen and roots(b)[0].frozen


@pytest.mark.parametrize("lengths", [[3, 3], [2, 4], [1, 5], [1, 1, 4]])
def test_parts_of_one_index_are_never_cut(lengths: list[int]) -> None:
    parts = axes.split(atom(6), lengths, WHY)
    assert [part == () for part in parts] == [length == 1 for length in lengths]


def test_parts_that_do_not_add_up_freeze() -> None:
    x = atom(6)
    assert [axes.size(part) for part in axes.split(x, [4, 4], WHY)] == [4, 4]
    assert roots(x)[0].frozen


@pytest.mark.timeout(20)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_sum_of_its_own_neighbours_is_one_unit(frozen: bool) -> None:
    x = axes.fresh(5000, WHY if frozen else None)
    first, rest = axes.split(x, [1, 4999], WHY)
    axes.unify(x, axes.concatenate([rest, first]), WHY)  # each unit is cut together with the next one
    assert roots(x)[0].frozen and roots(rest)[0].frozen


def test_two_copies_stay_free() -> None:
    x = atom(6)
    axes.unify(axes.concatenate([x, x]), axes.concatenate([x, x]), WHY)
    assert not roots(x)[0].frozen


def test_parts_without_units_are_left_out() -> None:
    """As of a rotary embedding of all numbers of a head, ``cat([turned, x[..., 64:]])``, which is its own input."""
    whole = axes.fresh(6)
    joined = axes.concatenate([whole, axes.fresh(0)])
    assert joined == whole
    axes.unify(joined, whole, WHY)
    assert len(labels(whole)) == 6
    assert axes.size(axes.concatenate([axes.fresh(0), axes.fresh(0)])) == 0
    assert roots(axes.fresh(0))[0].frozen is not None
    axes.unify(axes.concatenate([axes.fresh(0), axes.fresh(4), axes.fresh(2)]), whole, WHY)
    assert axes.size(whole) == 6
