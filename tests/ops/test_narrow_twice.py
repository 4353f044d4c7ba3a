"""Operators on [owned | rest] parameters: first and second derivatives, of real and of complex numbers.

The values are held against PyTorch's operators on the full parameter, the derivatives against finite differences.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from sdp_compile.ops import narrow
from tests.ops.test_narrow import split

RUNS = [(2, 3), (0, 2, 3), (1, 1, 1, 2), (1, 1, 1, 1, 1)]
"""Owned first, owned last, scattered over as many stretches as are multiplied apart, and over more."""

DTYPES = [torch.float64, torch.complex128]

Call = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed + sum(shape)))


def check(
    mine: Call,
    theirs: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    full: Tensor,
    bias: Tensor,
    dim: int,
    runs: tuple[int, ...],
) -> None:
    """``mine`` takes (x, owned, rest, bias), ``theirs`` (x, weight, bias)."""
    owned, rest = split(full, dim, runs)
    expected = theirs(x, full, bias)
    torch.testing.assert_close(mine(x, owned, rest, bias), expected, rtol=1e-12, atol=1e-12)
    leaves = (x.requires_grad_(), owned, bias.requires_grad_())
    assert gradcheck(lambda x, owned, bias: mine(x, owned, rest, bias), leaves)
    assert gradgradcheck(lambda x, owned, bias: mine(x, owned, rest, bias), leaves)
    frozen = owned.detach()  # only the input has a gradient, or only the weight
    assert gradgradcheck(lambda x: mine(x, frozen, rest, bias.detach()).square(), (x,))
    assert gradgradcheck(lambda owned: mine(x.detach(), owned, rest, bias.detach()).square(), (owned,))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("dim", [0, 1])
def test_linear(dim: int, runs: tuple[int, ...], dtype: torch.dtype) -> None:
    shape = [3, 3]
    shape[dim] = sum(runs)
    check(
        lambda x, owned, rest, bias: narrow.linear(x, owned, rest, bias, dim, runs),
        F.linear,
        draw(2, 2, shape[1], dtype=dtype),
        draw(*shape, dtype=dtype),
        draw(shape[0], dtype=dtype, seed=1),
        dim,
        runs,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [0, 1])
def test_product(dim: int, dtype: torch.dtype) -> None:
    shape = [3, 3]
    shape[dim] = 5
    check(
        lambda x, owned, rest, bias: narrow.product(x, owned, rest, bias, dim, (2, 3)),
        lambda x, weight, bias: torch.addmm(bias, x, weight),
        draw(2, shape[0], dtype=dtype),
        draw(*shape, dtype=dtype),
        draw(shape[1], dtype=dtype, seed=1),
        dim,
        (2, 3),
    )


# Weight shape, input shape, cut dimension, runs, stride, transposed, groups, and what the owned part sees.
CONVOLUTIONS: dict[str, tuple[list[int], list[int], int, tuple[int, ...], int, bool, int, narrow.Seen]] = {
    "1d, outputs": ([5, 2, 2], [2, 2, 4], 0, (2, 3), 1, False, 1, (None, (2, 3), 1)),
    "1d, inputs": ([2, 5, 2], [2, 5, 4], 1, (0, 2, 3), 2, False, 1, ((0, 2, 3), None, 1)),
    "2d, outputs": ([4, 2, 2, 2], [1, 2, 3, 3], 0, (1, 1, 1, 1), 1, False, 1, (None, (1, 1, 1, 1), 1)),
    "2d, inputs": ([2, 4, 2, 2], [1, 4, 3, 3], 1, (1, 3), 2, False, 1, ((1, 3), None, 1)),
    "2d, depthwise": ([4, 1, 2, 2], [1, 4, 3, 3], 0, (2, 2), 1, False, 4, ((2, 2), (2, 2), 2)),
    "2d, transposed, inputs": ([4, 2, 2, 2], [1, 4, 2, 2], 0, (2, 2), 2, True, 1, ((2, 2), None, 1)),
    "2d, transposed, outputs": ([2, 4, 2, 2], [1, 2, 2, 2], 1, (2, 2), 2, True, 1, (None, (2, 2), 1)),
    "3d, outputs": ([3, 1, 2, 2, 2], [1, 1, 2, 2, 2], 0, (1, 2), 1, False, 1, (None, (1, 2), 1)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case: str, dtype: torch.dtype) -> None:
    weight, x, dim, runs, stride, transposed, groups, seen = CONVOLUTIONS[case]
    spatial = len(weight) - 2
    geometry = ([stride] * spatial, [1] * spatial, [1] * spatial, transposed, [0] * spatial)
    oracle = getattr(F, f"conv_transpose{spatial}d" if transposed else f"conv{spatial}d")
    check(
        lambda x, owned, rest, bias: narrow.convolution(x, owned, rest, bias, dim, runs, geometry, groups, seen),
        lambda x, weight, bias: oracle(x, weight, bias, stride=stride, padding=1, groups=groups),
        draw(*x, dtype=dtype),
        draw(*weight, dtype=dtype),
        draw(weight[1 if transposed else 0], dtype=dtype, seed=1),
        dim,
        runs,
    )


@pytest.mark.parametrize("runs", RUNS)
def test_layer_norm(runs: tuple[int, ...]) -> None:
    check(
        lambda x, owned, rest, bias: narrow.layer_norm(x, [5], owned, rest, bias, 1e-5, runs),
        lambda x, weight, bias: F.layer_norm(x, [5], weight, bias),
        draw(2, 2, 5, dtype=torch.float64),
        draw(5, dtype=torch.float64),
        draw(5, dtype=torch.float64, seed=1),
        0,
        runs,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [6, 80])
def test_join_of_few_and_of_many_stretches(size: int, dtype: torch.dtype) -> None:
    """Few are concatenated, many are gathered."""
    runs = (1,) * size
    full = draw(2, size, dtype=dtype)
    owned, rest = split(full, 1, runs)
    assert torch.equal(narrow.join(owned, rest, 1, runs), full)
    assert gradgradcheck(lambda owned: narrow.join(owned, rest, 1, runs).square(), (owned,))


@pytest.mark.parametrize("dim", [0, 1])
def test_autocast_leaves_complex_numbers_as_they_are(dim: int) -> None:
    """As PyTorch's own linear layer does; a cast to a real dtype would drop the imaginary part."""
    x, full = draw(2, 5, dtype=torch.complex64), draw(5, 5, dtype=torch.complex64)
    owned, rest = split(full, dim, (2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = narrow.linear(x, owned, rest, None, dim, (2, 3)), F.linear(x, full)
    assert found.dtype == expected.dtype == torch.complex64
    torch.testing.assert_close(found, expected)
