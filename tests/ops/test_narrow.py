"""Operators on [owned | rest] parameters, against PyTorch's own on the full parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdp_compile.ops import narrow

RUNS = st.lists(st.integers(1, 5), min_size=2, max_size=7)


def split(full: Tensor, dim: int, runs: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The owned part, as a leaf, and the rest."""
    flags = torch.tensor([number % 2 == 0 for number, size in enumerate(runs) for _ in range(size)])
    owned = full.index_select(dim, flags.nonzero().view(-1)).requires_grad_()
    return owned, full.index_select(dim, (~flags).nonzero().view(-1))


def compare(
    run: Callable[..., Tensor], oracle: Callable[..., Tensor], full: Tensor, dim: int, runs: Any, *x: Tensor
) -> None:
    """Outputs, the gradients of all other inputs, and the owned part of the full weight's gradient."""
    owned, rest = split(full, dim, runs)
    mine = [value.clone().requires_grad_(value.is_floating_point()) for value in x]
    theirs = [value.clone().requires_grad_(value.is_floating_point()) for value in x]
    weight = full.clone().requires_grad_()
    out, expected = run(*mine, owned, rest), oracle(*theirs, weight)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    seed = torch.randn_like(expected)
    out.backward(seed)
    expected.backward(seed)
    assert weight.grad is not None and owned.grad is not None
    torch.testing.assert_close(owned.grad, split(weight.grad, dim, runs)[0].detach(), rtol=1e-10, atol=1e-10)
    for one, other in zip(mine, theirs, strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-10)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + sum(shape)))


@given(RUNS, st.booleans(), st.integers(0, 1))
@settings(max_examples=40, deadline=None)
def test_linear(lengths: list[int], starts_with_rest: bool, dim: int) -> None:
    runs = (0, *lengths) if starts_with_rest else tuple(lengths)
    shape = [3, 3]
    shape[dim] = sum(runs)
    x, full, bias = draw(2, 4, shape[1]), draw(*shape), draw(shape[0], seed=1)
    compare(
        lambda x, b, o, r: narrow.linear(x, o, r, b, dim, runs),
        lambda x, b, w: F.linear(x, w, b),
        full,
        dim,
        runs,
        x,
        bias,
    )
    compare(lambda x, o, r: narrow.linear(x, o, r, None, dim, runs), lambda x, w: F.linear(x, w), full, dim, runs, x)


@pytest.mark.parametrize("dim", [0, 1])
def test_product(dim: int) -> None:
    runs = (2, 3, 1)
    shape = [4, 4]
    shape[dim] = 6
    x, full, bias = draw(5, shape[0]), draw(*shape), draw(shape[1], seed=2)
    compare(
        lambda x, b, o, r: narrow.product(x, o, r, b, dim, runs),
        lambda x, b, w: torch.addmm(b, x, w),
        full,
        dim,
        runs,
        x,
        bias,
    )


@given(RUNS, st.booleans())
@settings(max_examples=20, deadline=None)
def test_layer_norm(lengths: list[int], starts_with_rest: bool) -> None:
    runs = (0, *lengths) if starts_with_rest else tuple(lengths)
    size = sum(runs)
    x, full, bias = draw(2, 3, size), draw(size), draw(size, seed=1)
    compare(
        lambda x, b, o, r: narrow.layer_norm(x, [size], o, r, b, 1e-5, runs),
        lambda x, b, w: F.layer_norm(x, [size], w, b),
        full,
        0,
        runs,
        x,
        bias,
    )


@given(st.integers(2, 60), st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_join_of_any_stretches(size: int, random: Any) -> None:
    flags = [random.random() < 0.5 for _ in range(size)]
    flags[0], flags[-1] = True, False
    borders = np.flatnonzero(np.diff(flags)) + 1
    runs = tuple(np.diff([0, *borders, size]).tolist())
    full = draw(2, size, 3)
    owned, rest = split(full, 1, runs)
    assert torch.equal(narrow.join(owned, rest, 1, runs), full)
    assert torch.equal(narrow.owned_part(full, 1, runs), owned)


def test_only_owned_inputs_are_saved() -> None:
    """Columns: the owned columns of the input. Rows: the input, which the gradient of the owned rows needs."""
    saved: list[int] = []
    x = torch.randn(64, 32, requires_grad=True)
    full = torch.randn(32, 32)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    for dim, expected in ((0, 64 * 32), (1, 64 * 8)):
        owned, rest = split(full, dim, (8, 24))
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            narrow.linear(x, owned, rest, None, dim, (8, 24)).sum().backward()
        assert sorted(saved) == sorted([expected, owned.numel(), rest.numel()])
    frozen, rest = (part.detach() for part in split(full, 0, (8, 24)))
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        narrow.linear(x, frozen, rest, None, 0, (8, 24))
    assert sorted(saved) == sorted([frozen.numel(), rest.numel()])


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_convolution(dim: int, stride: int, dilation: int) -> None:
    """The owned part sees all outputs of its input channels, or all inputs of its output channels."""
    runs = (0, 2, 3, 1)
    shape = [4, 4, 3, 3]
    shape[dim] = 6
    x, full, bias = draw(2, shape[1], 7, 7), draw(*shape), draw(shape[0], seed=1)
    geometry: narrow.Geometry = ([stride] * 2, [1, 1], [dilation] * 2, False, [0, 0])
    seen: narrow.Seen = (None, runs, 1) if dim == 0 else (runs, None, 1)
    compare(
        lambda x, b, o, r: narrow.convolution(x, o, r, b, dim, runs, geometry, 1, seen),
        lambda x, b, w: F.conv2d(x, w, b, stride, 1, dilation),
        full,
        dim,
        runs,
        x,
        bias,
    )


def test_depthwise_convolution() -> None:
    """Each channel is a group of its own: the owned ones see their own inputs and outputs."""
    runs = (2, 3, 1)
    x, full = draw(2, 6, 5, 5), draw(6, 1, 3, 3)
    geometry: narrow.Geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0])
    compare(
        lambda x, o, r: narrow.convolution(x, o, r, None, 0, runs, geometry, 6, (runs, runs, 3)),
        lambda x, w: F.conv2d(x, w, padding=1, groups=6),
        full,
        0,
        runs,
        x,
    )


def test_autocast_casts_as_it_does_for_the_operator() -> None:
    runs, x = (2, 4), torch.randn(3, 5)
    owned, rest = split(torch.randn(6, 5), 0, runs)
    with torch.autocast("cpu", torch.bfloat16):
        found = narrow.linear(x, owned, rest, None, 0, runs)
        expected = F.linear(x, torch.cat([owned, rest]))
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
