"""Operators on parameters that are held as [owned | rest], whose weight gradients are computed for the owned part only.

Under backward masking a worker computes with the full model. These functions compute what the ATen operators of their
names compute with the joined parameter. They work on the two parts where that is cheaper than joining
them, and save for backward only what the gradients of the input and of the owned part need. ``runs`` are the lengths of
alternating owned and unowned stretches along the cut dimension; see `sdp_compile.planning.unowned.Unowned.runs`.

Backward can be differentiated again. So what the Functions save are their inputs: autograd knows where an input comes
from, but not where a tensor made in ``forward`` does. Gradients follow PyTorch's convention for complex numbers, which
conjugates the other factor of a product.

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
    x, owned, rest, bias = _as_autocast(x, owned, rest, bias)
    # Reshaped here, because a view made inside a Function may not be written to in place.
    flat = x.reshape(-1, x.shape[-1])
    result: Tensor
    if dim == 0:
        result = _LinearByRows.apply(flat, owned, rest, bias, runs)
    else:
        result = _LinearByColumns.apply(flat, _for_gradient_of(owned, flat, runs), owned, rest, bias, runs)
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
    shared = (dim, runs, geometry, groups, seen)
    if x.is_complex():
        return _complex_convolution(x, owned, rest, bias, shared)
    result: Tensor = _Convolution.apply(x, _for_gradient_of(owned, x, seen[0]), owned, rest, bias, *shared)
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

    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.dtype == torch.float64 or not tensor.is_floating_point():
            return tensor
        return tensor.to(dtype)

    return tuple(map(cast, (x, owned, rest, bias)))


def _for_gradient_of(owned: Tensor, x: Tensor, runs: Runs | None) -> Tensor | None:
    """Returns the channels of the input that the gradient of the owned part needs; None where it has no gradient."""
    if not (torch.is_grad_enabled() and owned.requires_grad):
        return None
    part = (x if runs is None else owned_part(x, 1, runs)).contiguous()
    return part.view_as(part) if part is x else part  # TorchDynamo takes no tensor twice as input of a Function


def _complex_convolution(
    x: Tensor, owned: Tensor, rest: Tensor, bias: Tensor | None, shared: tuple[Any, ...]
) -> Tensor:
    """Returns a complex convolution as three real ones, as PyTorch's own: (a + bi)(c + di) by Gauss."""
    real = convolution(x.real, owned.real, rest.real, None, *shared)
    imaginary = convolution(x.imag, owned.imag, rest.imag, None, *shared)
    both = convolution(x.real + x.imag, owned.real + owned.imag, rest.real + rest.imag, None, *shared)
    result = torch.complex(real - imaginary, both - real - imaginary)
    return result if bias is None else result + bias.view(-1, *[1] * (x.ndim - 2))


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
    return [(_narrowed(part, dim, start, size), position, size) for part, start, size, position in stretches]


def _narrowed(part: Tensor, dim: int, start: int, size: int) -> Tensor:
    """Returns `Tensor.narrow`, without a call if it is all of the part."""
    return part if size == part.shape[dim] else part.narrow(dim, start, size)


def _conj(x: Tensor) -> Tensor:
    """Returns `Tensor.conj`, without a call if it is real."""
    return x.conj() if x.is_complex() else x


def _is_scattered(runs: Runs) -> bool:
    return len(list(filter(None, runs))) > _MOST_PRODUCTS


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _by_columns(x: Tensor, parts: list[tuple[Tensor, int]], columns: int, bias: Tensor | None = None) -> Tensor:
    """Returns ``x @ [weight, ...]`` (+ bias), with each product written to its columns of the result."""
    # A compiler writes products into a concatenation by itself; autograd does not record writing to a part.
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        full = torch.cat([x @ weight for weight, _ in parts], -1)
        return full if bias is None else full + bias
    out = x.new_empty(x.shape[0], columns)
    sizes = [weight.shape[1] for weight, _ in parts]
    targets = out.split_with_sizes(sizes, 1)
    if bias is None:
        for (weight, _), target in zip(parts, targets, strict=True):
            torch.mm(x, weight, out=target)
    else:
        for (weight, _), target, of_bias in zip(parts, targets, bias.split_with_sizes(sizes), strict=True):
            torch.addmm(of_bias, x, weight, out=target)
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
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, owned, rest = ctx.saved_tensors
        of_x = of_owned = of_bias = None
        if ctx.needs_input_grad[0]:
            stretches = _stretches(owned, rest, ctx.runs)
            of_x = _by_sum(
                [(g.narrow(1, at, size), _conj(_narrowed(part, 0, start, size))) for part, start, size, at in stretches]
            )
        if ctx.needs_input_grad[1]:
            of_owned = owned_part(g, 1, ctx.runs).t() @ _conj(x)
        if ctx.needs_input_grad[3]:
            of_bias = g.sum(0)
        return of_x, of_owned, None, of_bias, None


class _LinearByColumns(torch.autograd.Function):
    """A linear layer of which some columns (inputs) are owned; only those inputs are saved."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mine: Tensor | None, owned: Tensor, rest: Tensor, bias: Tensor | None, runs: Runs
    ) -> Tensor:
        ctx.save_for_backward(mine, owned, rest)
        ctx.runs = runs
        if _is_scattered(runs):
            return _by_sum([(owned_part(x, 1, runs), owned.t()), (owned_part(x, 1, (0, *runs)), rest.t())], bias)
        weights = _weights(owned, rest, 1, runs)
        return _by_sum([(x.narrow(1, start, size), weight.t()) for weight, start, size in weights], bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mine, owned, rest = ctx.saved_tensors
        of_x = of_owned = of_bias = None
        if ctx.needs_input_grad[0]:
            parts = [(_conj(weight), start) for weight, start, _ in _weights(owned, rest, 1, ctx.runs)]
            of_x = _by_columns(g, parts, sum(ctx.runs))
        if ctx.needs_input_grad[2]:
            of_owned = g.t() @ _conj(mine)
        if ctx.needs_input_grad[4]:
            of_bias = g.sum(0)
        return of_x, None, of_owned, None, of_bias, None


class _Convolution(torch.autograd.Function):
    """A convolution; its weight, small beside the activations, is joined for the duration of a kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mine: Tensor | None,
        owned: Tensor,
        rest: Tensor,
        bias: Tensor | None,
        dim: int,
        runs: Runs,
        geometry: Geometry,
        groups: int,
        seen: Seen,
    ) -> Tensor:
        ctx.save_for_backward(mine, owned, rest)
        ctx.shape, ctx.dim, ctx.runs, ctx.geometry, ctx.groups, ctx.seen = x.shape, dim, runs, geometry, groups, seen
        out: Tensor = aten.convolution(x, join(owned, rest, dim, runs), bias, *geometry, groups)
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        mine, owned, rest = ctx.saved_tensors
        of_x = of_owned = of_bias = None
        if ctx.needs_input_grad[0]:
            like = g.new_empty(1).expand(ctx.shape)  # only the shape matters
            of_x = _backward(g, like, join(owned, rest, ctx.dim, ctx.runs), ctx.geometry, ctx.groups, 0)
        if ctx.needs_input_grad[2]:
            mine_of_g = g if ctx.seen[1] is None else owned_part(g, 1, ctx.seen[1])
            of_owned = _backward(mine_of_g, mine, owned, ctx.geometry, ctx.seen[2], 1)
        if ctx.needs_input_grad[4]:
            of_bias = g.sum([dim for dim in range(g.ndim) if dim != 1])
        return of_x, None, of_owned, None, of_bias, None, None, None, None, None


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
        ctx.eps, ctx.runs = eps, runs
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, owned, rest = ctx.saved_tensors
        of_x = of_owned = of_bias = None
        if ctx.needs_input_grad[0]:
            weight, mask = join(owned, rest, 0, ctx.runs), [True, False, False]
            of_x = aten.native_layer_norm_backward(g, x, x.shape[-1:], mean, rstd, weight, None, mask)[0]
        if ctx.needs_input_grad[1]:
            if torch.is_grad_enabled():  # with the history that the saved mean and deviation lack
                normalised = owned_part(F.layer_norm(x, x.shape[-1:], eps=ctx.eps), x.ndim - 1, ctx.runs)
            else:
                normalised = (owned_part(x, x.ndim - 1, ctx.runs) - mean) * rstd
            of_owned = _flat(owned_part(g, g.ndim - 1, ctx.runs) * normalised).sum(0).to(owned.dtype)
        if ctx.needs_input_grad[3]:
            of_bias = _flat(g).sum(0)
        return of_x, of_owned, None, of_bias, None, None
