"""Operators on parameters that are held as [owned | rest], whose weight gradients are computed for the owned part only.

Under backward masking a worker computes with the full model. These functions compute what the ATen operators of their
names compute with the joined parameter. They work on the two parts where that is cheaper than joining
them, and save for backward only what the gradients of the input and of the owned part need. ``runs`` are the lengths of
alternating owned and unowned stretches along the cut dimension; see `sdp_compile.planning.unowned.Unowned.runs`.

Source: arXiv 2507.09029, section 3 (backward masking).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

Runs: TypeAlias = tuple[int, ...]

Geometry: TypeAlias = tuple[list[int], list[int], list[int], bool, list[int]]
"""Stride, padding, dilation, whether transposed, output padding: the arguments of ``aten.convolution``."""

Seen: TypeAlias = tuple[Runs | None, Runs | None, int]
"""What the owned part of a convolution's weight sees: its input and its output channels (None: all), its groups."""

_MOST_RUNS = 32
"""More stretches than this are ordered by one gather instead of a concatenation of views."""

_MOST_PRODUCTS = 3
"""A weight in more stretches than this is joined for the duration of one product, which is measured to be faster.

It is joined in forward or in backward, never in both: a compiler would join it once and keep it in between.
"""


def join(owned: Tensor, rest: Tensor, dim: int, runs: Runs) -> Tensor:
    """Returns the full tensor: ``owned`` and ``rest`` in alternating stretches along ``dim``."""
    if len(runs) <= _MOST_RUNS:
        return torch.cat([part.narrow(dim, start, size) for part, start, size, _ in _stretches(owned, rest, runs)], dim)
    order = torch.cat(
        [
            torch.arange(start, start + size, device=owned.device) + (0 if part is owned else owned.shape[dim])
            for part, start, size, _ in _stretches(owned, rest, runs)
        ]
    )
    return torch.cat([owned, rest], dim).index_select(dim, order)


def owned_part(full: Tensor, dim: int, runs: Runs) -> Tensor:
    """Returns the owned stretches of a full tensor along ``dim``: a view if there is one stretch."""
    ends = list(_ends(runs))
    parts = [full.narrow(dim, end - size, size) for end, size in ends[::2] if size]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def linear(x: Tensor, owned: Tensor, rest: Tensor, bias: Tensor | None, dim: int, runs: Runs) -> Tensor:
    """Returns ``torch.nn.functional.linear`` with a weight that is cut along its rows (``dim`` 0) or columns (1)."""
    function = _LinearByRows if dim == 0 else _LinearByColumns
    x, owned, rest, bias = _as_autocast(x, owned, rest, bias)
    # Reshaped here, because a view made inside a Function may not be written to in place.
    result: Tensor = function.apply(x.reshape(-1, x.shape[-1]), owned, rest, bias, runs)
    return result.view(*x.shape[:-1], result.shape[-1])


def product(x: Tensor, owned: Tensor, rest: Tensor, bias: Tensor | None, dim: int, runs: Runs) -> Tensor:
    """Returns ``x @ weight (+ bias)`` with a weight of shape (inputs, outputs), as `torch.addmm` takes it."""
    return linear(x, owned.t(), rest.t(), bias, 1 - dim, runs)


def convolution(
    x: Tensor,
    owned: Tensor,
    rest: Tensor,
    bias: Tensor | None,
    dim: int,
    runs: Runs,
    geometry: Geometry,
    groups: int,
    seen: Seen,
) -> Tensor:
    """Returns ``aten.convolution`` of batched input with a weight that is cut along ``dim``, a channel dimension."""
    x, owned, rest, bias = _as_autocast(x, owned, rest, bias)
    result: Tensor = _Convolution.apply(x, owned, rest, bias, dim, runs, geometry, groups, seen)
    return result


def layer_norm(
    x: Tensor, normalized_shape: list[int], owned: Tensor, rest: Tensor, bias: Tensor | None, eps: float, runs: Runs
) -> Tensor:
    """Returns ``torch.nn.functional.layer_norm`` over the last dimension, with a weight that is owned in part."""
    if torch.is_autocast_enabled(x.device.type):  # the rules of autocast differ between devices
        return F.layer_norm(x, normalized_shape, join(owned, rest, 0, runs), bias, eps)
    result: Tensor = _LayerNorm.apply(x, owned, rest, bias, eps, runs)
    return result


def _as_autocast(x: Tensor, owned: Tensor, rest: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    """Casts the operands as `torch.autocast` would for the operator, because it does not see inside a Function."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, owned, rest, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(
        tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)
        for tensor in (x, owned, rest, bias)
    )


def _stretches(owned: Tensor, rest: Tensor, runs: Runs) -> Iterator[tuple[Tensor, int, int, int]]:
    """Yields (part, start in the part, length, start in the full dimension) of each stretch."""
    starts, position = [0, 0], 0
    for number, size in enumerate(runs):
        if size:
            yield (owned, rest)[number % 2], starts[number % 2], size, position
        starts[number % 2] += size
        position += size


def _ends(runs: Runs) -> Iterator[tuple[int, int]]:
    """Yields (end, length) of each stretch."""
    end = 0
    for size in runs:
        end += size
        yield end, size


def _weights(owned: Tensor, rest: Tensor, dim: int, runs: Runs) -> list[tuple[Tensor, int, int]]:
    """Returns (part, start, length) in the full weight along ``dim`` of the parts to multiply by."""
    if _is_scattered(runs):
        return [(join(owned, rest, dim, runs), 0, sum(runs))]
    stretches = _stretches(owned, rest, runs)
    return [(part.narrow(dim, start, size), position, size) for part, start, size, position in stretches]


def _is_scattered(runs: Runs) -> bool:
    return len(list(filter(None, runs))) > _MOST_PRODUCTS


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _by_columns(x: Tensor, parts: list[tuple[Tensor, int]], columns: int, bias: Tensor | None = None) -> Tensor:
    """Returns ``x @ [weight, ...]`` (+ bias), with each product written to its columns of the result."""
    if torch.compiler.is_compiling():  # a compiler writes products into a concatenation by itself
        full = torch.cat([x @ weight for weight, _ in parts], -1)
        return full if bias is None else full + bias
    out = x.new_empty(x.shape[0], columns)
    for weight, start in parts:
        target = out[:, start : start + weight.shape[1]]
        if bias is None:
            torch.mm(x, weight, out=target)
        else:
            torch.addmm(bias[start : start + weight.shape[1]], x, weight, out=target)
    return out


def _by_sum(pairs: list[tuple[Tensor, Tensor]], bias: Tensor | None = None) -> Tensor:
    """Returns the sum of the products (+ bias)."""
    (x, weight), *others = pairs
    out = x @ weight if bias is None else torch.addmm(bias, x, weight)
    for x, weight in others:
        out = torch.addmm(out, x, weight) if torch.compiler.is_compiling() else out.addmm_(x, weight)
    return out


class _LinearByRows(torch.autograd.Function):
    """A linear layer of which some rows (outputs) are owned; their gradient needs all inputs and only their outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, owned: Tensor, rest: Tensor, bias: Tensor | None, runs: Runs) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, owned, rest)
        ctx.runs = runs
        parts = [(weight.t(), start) for weight, start, _ in _weights(owned, rest, 0, runs)]
        return _by_columns(x, parts, sum(runs), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, owned, rest = ctx.saved_tensors
        of_x = of_owned = of_bias = None
        if ctx.needs_input_grad[0]:
            stretches = _stretches(owned, rest, ctx.runs)
            of_x = _by_sum(
                [(g.narrow(1, at, size), part.narrow(0, start, size)) for part, start, size, at in stretches]
            )
        if ctx.needs_input_grad[1]:
            of_owned = owned_part(g, 1, ctx.runs).t() @ x
        if ctx.needs_input_grad[3]:
            of_bias = g.sum(0)
        return of_x, of_owned, None, of_bias, None


class _LinearByColumns(torch.autograd.Function):
    """A linear layer of which some columns (inputs) are owned; only those inputs are saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, owned: Tensor, rest: Tensor, bias: Tensor | None, runs: Runs) -> Tensor:
        mine = owned_part(x, 1, runs).contiguous() if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(mine, owned, rest)
        ctx.runs = runs
        if _is_scattered(runs):
            return _by_sum([(owned_part(x, 1, runs), owned.t()), (owned_part(x, 1, (0, *runs)), rest.t())], bias)
        weights = _weights(owned, rest, 1, runs)
        return _by_sum([(x.narrow(1, start, size), weight.t()) for weight, start, size in weights], bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mine, owned, rest = ctx.saved_tensors
        of_x = of_owned = of_bias = None
        if ctx.needs_input_grad[0]:
            parts = [(weight, start) for weight, start, _ in _weights(owned, rest, 1, ctx.runs)]
            of_x = _by_columns(g, parts, sum(ctx.runs))
        if ctx.needs_input_grad[1]:
            of_owned = g.t() @ mine
        if ctx.needs_input_grad[3]:
            of_bias = g.sum(0)
        return of_x, of_owned, None, of_bias, None


class _Convolution(torch.autograd.Function):
    """A convolution; its weight, small beside the activations, is joined for the duration of a kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        owned: Tensor,
        rest: Tensor,
        bias: Tensor | None,
        dim: int,
        runs: Runs,
        geometry: Geometry,
        groups: int,
        seen: Seen,
    ) -> Tensor:
        mine = _channels(x, seen[0]).contiguous() if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(mine, owned, rest)
        ctx.shape, ctx.dim, ctx.runs, ctx.geometry, ctx.groups, ctx.seen = x.shape, dim, runs, geometry, groups, seen
        out: Tensor = aten.convolution(x, join(owned, rest, dim, runs), bias, *geometry, groups)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mine, owned, rest = ctx.saved_tensors
        of_x = of_owned = of_bias = None
        if ctx.needs_input_grad[0]:
            like = g.new_empty(1).expand(ctx.shape)  # only the shape matters
            of_x = _backward(g, like, join(owned, rest, ctx.dim, ctx.runs), ctx.geometry, ctx.groups, 0)
        if ctx.needs_input_grad[1]:
            of_owned = _backward(_channels(g, ctx.seen[1]), mine, owned, ctx.geometry, ctx.seen[2], 1)
        if ctx.needs_input_grad[3]:
            of_bias = g.sum([dim for dim in range(g.ndim) if dim != 1])
        return of_x, of_owned, None, of_bias, None, None, None, None, None


def _channels(x: Tensor, runs: Runs | None) -> Tensor:
    return x if runs is None else owned_part(x, 1, runs)


def _backward(g: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, groups: int, which: int) -> Tensor:
    mask = [number == which for number in range(3)]
    result: Tensor = aten.convolution_backward(g, x, weight, None, *geometry, groups, mask)[which]
    return result


class _LayerNorm(torch.autograd.Function):
    """A layer norm; the gradient of each weight is a sum over positions, so only owned channels are summed."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, owned: Tensor, rest: Tensor, bias: Tensor | None, eps: float, runs: Runs
    ) -> Tensor:
        out, mean, rstd = aten.native_layer_norm(x, x.shape[-1:], join(owned, rest, 0, runs), bias, eps)
        ctx.save_for_backward(x, mean, rstd, owned, rest)
        ctx.runs = runs
        return out  # type: ignore[no-any-return]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, owned, rest = ctx.saved_tensors
        of_x = of_owned = of_bias = None
        if ctx.needs_input_grad[0]:
            weight, mask = join(owned, rest, 0, ctx.runs), [True, False, False]
            of_x = aten.native_layer_norm_backward(g, x, x.shape[-1:], mean, rstd, weight, None, mask)[0]
        if ctx.needs_input_grad[1]:
            normalised = (owned_part(x, x.ndim - 1, ctx.runs) - mean) * rstd
            of_owned = _flat(owned_part(g, g.ndim - 1, ctx.runs) * normalised).sum(0).to(owned.dtype)
        if ctx.needs_input_grad[3]:
            of_bias = _flat(g).sum(0)
        return of_x, of_owned, None, of_bias, None, None
