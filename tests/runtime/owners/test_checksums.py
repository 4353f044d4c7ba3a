"""Checksums depend on the bits of the elements and their order, and on nothing else."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sdp_compile.runtime.owners import checksums as module
from sdp_compile.runtime.owners.checksums import checksums, fetched

SHAPES = [(), (1,), (3,), (7, 5), (6, 5), (6, 8), (4, 3, 3, 3), (600, 513), (256, 512), (1, 1000)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int8, torch.bool]


def checksum(tensor: Tensor) -> int:
    (result,) = checksums([tensor], late=False)()
    return result


def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 9).to(dtype)


def strided(tensor: Tensor) -> list[Tensor]:
    """The same elements in other places."""
    spread = torch.zeros([2 * size + 1 for size in tensor.shape], dtype=tensor.dtype)
    view = spread[tuple(slice(1, None, 2) for _ in tensor.shape)]
    wide = torch.zeros([size + 3 for size in tensor.shape], dtype=tensor.dtype)
    inside = wide[tuple(slice(3, None) for _ in tensor.shape)]
    reversed_ = torch.empty(tensor.shape[::-1], dtype=tensor.dtype).permute(tuple(range(tensor.dim())[::-1]))
    return [copy.copy_(tensor) for copy in (view, inside, reversed_)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_checksum_is_of_the_elements(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor = values(shape, dtype)
    expected = checksum(tensor)
    assert [checksum(other) for other in strided(tensor)] == [expected] * 3
    changed = tensor.clone()
    flat: Any = changed.view(-1)
    flat[-1] = flat[-1].logical_not() if dtype == torch.bool else flat[-1] + 1
    assert checksum(changed) != expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_long_tensor_may_begin_anywhere(dtype: torch.dtype) -> None:
    """Its words need not begin where words of the memory do."""
    wide = values((2**17 + 4,), dtype)
    for start in range(4):
        part = wide[start : start + 2**17]
        assert checksum(part) == checksum(torch.stack([part, part], 1)[:, 0])
        before = part.clone()
        assert checksum(part) == checksum(before) and torch.equal(part, before)


def test_exchanged_elements_rows_and_signs_of_zero_are_noticed() -> None:
    tensor = values((600, 512), torch.float32)
    others = [
        tensor.flip(0),
        tensor.flip(1),
        tensor.roll(1, 0),
        tensor.roll(2, 1),
        tensor.view(512, 600).T.reshape(600, 512),
    ]
    assert len({checksum(other) for other in (tensor, *others)}) == 6
    eye = torch.eye(64)
    assert checksum(eye) != checksum(eye.roll(1, 0))
    assert checksum(torch.zeros(4)) != checksum(-torch.zeros(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2,), (6, 8), (600, 512)])
def test_other_signs_of_all_elements_are_noticed(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Only the highest bits change, of an even number of words."""
    tensor = values(shape, dtype)
    half = tensor.clone()
    half[: len(half) // 2].neg_()
    assert len({checksum(other) for other in (tensor, -tensor, half, -half)}) == 4


def test_elements_exchanged_across_rows_and_columns_are_noticed() -> None:
    """The sums of all rows and columns stay the same."""
    tensor = torch.zeros(1024, 512)
    moved = tensor.clone()
    for at, value in (((0, 0), 1.0), ((0, 100), -1.0), ((700, 0), -1.0), ((700, 100), 1.0)):
        tensor[at], moved[at] = value, -value
    assert checksum(tensor) != checksum(moved)


@pytest.mark.parametrize("largest", [1, 10_000, 2**25])
def test_checksums_do_not_depend_on_the_other_tensors(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED_BYTES", largest)
    tensors = [values(shape, dtype) for shape in (*SHAPES, (0, 3)) for dtype in DTYPES]
    assert checksums(tensors, late=True)() == [checksum(tensor) for tensor in tensors]
    assert checksums(tensors[::-1], late=False)() == [checksum(tensor) for tensor in tensors[::-1]]
    assert checksums([], late=False)() == []


def test_many_checksums_take_few_calls() -> None:
    """A tensor costs a view of where it goes, and its share of one copy."""
    tensors = [values((30, 20), torch.float32) for _ in range(100)]
    checksums(tensors, late=False)()
    with Calls() as calls:
        checksums(tensors, late=False)()
    assert calls.count <= len(tensors) + 20


class Calls(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_scalars_are_fetched_in_their_order() -> None:
    assert fetched([torch.tensor(value) for value in (5, -3, 2**62)], late=False)() == [5, -3, 2**62]
    assert fetched([torch.tensor([7, 8]), torch.tensor(True), torch.tensor([], dtype=torch.int64)], late=True)() == [
        7,
        8,
        1,
    ]
    assert fetched([], late=True)() == []


@pytest.mark.parametrize("late", [True, False])
def test_tensors_may_be_freed_before_their_checksums_are_compared(late: bool) -> None:
    tensors = [values((6, 5), torch.float32), values((3,), torch.float32)]
    get, wanted = checksums(tensors, late), [checksum(tensor) for tensor in tensors]
    references = [weakref.ref(tensor) for tensor in tensors]
    tensors.clear()
    assert [reference() for reference in references] == [None, None]
    assert get() == wanted
