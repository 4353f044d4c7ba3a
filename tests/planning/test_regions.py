"""Regions of tensors, against numpy's indexing."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.planning.regions import Region, full

SIZES = (7, 6, 5)
regions = st.tuples(
    *(st.lists(st.integers(0, size - 1), min_size=1, unique=True).map(sorted).map(np.array) for size in SIZES)
)


@settings(deadline=None)
@given(regions)
def test_a_region_is_read_copied_and_written(index: tuple[np.ndarray, ...]) -> None:
    region, tensor = Region(index), torch.arange(float(np.prod(SIZES))).reshape(SIZES)
    expected = tensor.numpy()[np.ix_(*index)]
    assert region.shape == expected.shape and region.numel == expected.size
    assert (region.read(tensor).numpy() == expected).all()
    copy, out = region.copy(tensor), torch.empty(region.shape)
    assert region.copy(tensor, out) is out and (out.numpy() == expected).all() and (copy.numpy() == expected).all()
    assert copy.data_ptr() != tensor.data_ptr(), "a copy shares no memory"
    written, wanted = tensor.clone(), tensor.numpy().copy()
    wanted[np.ix_(*index)] = -expected
    region.write(written, torch.from_numpy(-expected).reshape(-1))
    assert (written.numpy() == wanted).all()


@settings(deadline=None)
@given(regions, st.permutations(range(3)))
def test_the_window_of_a_region_has_its_elements_in_order(index: tuple[np.ndarray, ...], order: list[int]) -> None:
    region, tensor = Region(index), torch.arange(float(np.prod(SIZES))).reshape([SIZES[dim] for dim in order])
    tensor = tensor.permute([order.index(dim) for dim in range(3)])
    found = region.window(tensor.stride())
    if found is None:
        assert not region.is_view
        return
    size, strides, offset, is_run = found
    window = tensor.as_strided(size, strides, offset)
    assert torch.equal(window.reshape(-1), region.read(tensor).reshape(-1))
    if is_run:
        assert torch.equal(tensor.as_strided((region.numel,), (1,), offset), window.reshape(-1))


def test_equal_runs_at_equal_distances_are_a_window() -> None:
    """The rows of two heads among the queries, keys and values of four; with one head less they are none."""
    heads = [head + 8 * part for part in range(3) for head in (2, 3, 4, 5)]
    found = Region([np.array(heads), np.arange(5)]).window((5, 1))
    assert found == ((3, 4, 5), (40, 5, 1), 10, False)
    assert Region([np.array(heads[:-1])]).window((1,)) is None
    assert Region([np.array([0, 1, 3, 4, 7, 8])]).window((1,)) is None
    assert Region([np.array([0, 1, 3])]).window((1,)) is None


def test_evenly_spaced_regions_are_views() -> None:
    tensor = torch.arange(24.0).reshape(4, 6)
    view = Region([np.array([1, 3]), np.array([0, 2, 4])]).read(tensor)
    view.zero_()
    assert tensor[1, 2] == tensor[3, 4] == 0 and tensor[1, 1] == 7
    assert Region([np.array([], dtype=np.int64), np.arange(6)]).read(tensor).shape == (0, 6)
    assert (full((4, 6)).read(tensor) == tensor).all()


def test_written_values_take_the_dtype_of_the_tensor() -> None:
    tensor = torch.zeros(3, dtype=torch.bfloat16)
    Region([np.array([0, 2])]).write(tensor, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert tensor.tolist() == [1, 0, 2]


def test_tensors_of_other_sizes_and_equal_strides() -> None:
    """The view of one tensor must not be taken for that of another."""
    region = Region([np.array([0, 1, 3]), np.arange(4)])
    for rows in (4, 6):
        tensor = torch.randn(rows, 4)
        assert torch.equal(region.read(tensor), tensor[[0, 1, 3]])
    last = Region([np.array([0, 2, 5]), np.arange(4)])
    small, large = torch.randn(6, 4), torch.randn(9, 4)
    assert torch.equal(last.read(large), large[[0, 2, 5]]) and torch.equal(last.read(small), small[[0, 2, 5]])
    last.write(large, torch.zeros(3, 4))
    assert not large[[0, 2, 5]].any() and bool(large[[1, 3, 4, 6, 7, 8]].any(1).all())
