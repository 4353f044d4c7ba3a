"""Checksums depend on the bits of the elements and their order, and on nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sdp_compile.runtime.owners.checksums import checksum, fetched

SHAPES = [(), (1,), (3,), (7, 5), (6, 5), (6, 8), (4, 3, 3, 3), (600, 513), (1, 1000)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int8, torch.bool]


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
    expected = checksum(tensor).item()
    assert [checksum(other).item() for other in strided(tensor)] == [expected] * 3
    changed = tensor.clone()
    flat: Any = changed.view(-1)
    flat[-1] = flat[-1].logical_not() if dtype == torch.bool else flat[-1] + 1
    assert checksum(changed).item() != expected


def test_exchanged_elements_rows_and_signs_of_zero_are_noticed() -> None:
    tensor = values((600, 512), torch.float32)
    others = [
        tensor.flip(0),
        tensor.flip(1),
        tensor.roll(1, 0),
        tensor.roll(2, 1),
        tensor.view(512, 600).T.reshape(600, 512),
    ]
    assert len({checksum(other).item() for other in (tensor, *others)}) == 6
    eye = torch.eye(64)
    assert checksum(eye).item() != checksum(eye.roll(1, 0)).item()
    assert checksum(torch.zeros(4)).item() != checksum(-torch.zeros(4)).item()


def test_scalars_are_fetched_in_their_order() -> None:
    assert fetched([torch.tensor(value) for value in (5, -3, 2**62)], late=False)() == [5, -3, 2**62]
    assert fetched([], late=True)() == []
