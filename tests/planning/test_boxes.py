"""Boxes: every element of a piece lies in exactly one of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.planning.boxes import Box, boxes, cover_exactly, flat_boxes

SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple)


@st.composite
def selections(draw: st.DrawFn) -> tuple[tuple[int, ...], list[np.ndarray]]:
    shape = draw(SHAPES)
    return shape, [np.array(sorted(draw(st.sets(st.integers(0, size - 1)))), dtype=np.int64) for size in shape]


@given(selections())
def test_boxes_make_up_an_outer_product(selection: tuple[tuple[int, ...], list[np.ndarray]]) -> None:
    shape, index = selection
    full = np.arange(int(np.prod(shape))).reshape(shape)
    local = full[np.ix_(*index)] if shape else full
    counted, expected = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
    expected[np.ix_(*index) if shape else ()] = 1
    for box, own in boxes(index, [np.arange(len(one)) for one in index]):
        assert np.array_equal(full[box.slices], local[own.slices]) and box.numel > 0
        counted[box.slices] += 1
    assert np.array_equal(counted, expected)


@given(SHAPES, st.data())
def test_flat_boxes_are_a_run_of_the_flat_tensor(shape: tuple[int, ...], data: st.DataObject) -> None:
    numel = int(np.prod(shape))
    start = data.draw(st.integers(0, numel))
    stop = data.draw(st.integers(start, numel))
    full = np.arange(numel).reshape(shape)
    found = [full[box.slices].reshape(-1) for box in flat_boxes(shape, start, stop)]
    assert np.array_equal(np.concatenate([np.zeros(0, dtype=int), *found]), np.arange(start, stop))
    assert len(found) <= max(1, 2 * len(shape) - 1)


@given(SHAPES, st.data())
def test_a_cover_is_exact_only_if_nothing_is_missing_or_double(shape: tuple[int, ...], data: st.DataObject) -> None:
    numel = int(np.prod(shape))
    cuts = sorted(data.draw(st.sets(st.integers(0, numel), max_size=4)) | {0, numel})
    parts = [box for start, stop in pairwise(cuts) for box in flat_boxes(shape, start, stop)]
    assert cover_exactly(parts, shape)
    number = data.draw(st.integers(0, len(parts) - 1))
    assert not cover_exactly(parts[:number] + parts[number + 1 :], shape)
    assert not cover_exactly([*parts, parts[number]], shape)


def test_equal_volume_is_no_cover() -> None:
    assert not cover_exactly([Box((0, 0), (1, 2)), Box((0, 0), (1, 2))], (2, 2))
    assert not cover_exactly([Box((0, 0), (2, 1)), Box((0, 0), (1, 2))], (2, 2))
    assert cover_exactly([], (0, 3)) and not cover_exactly([], (1,))
