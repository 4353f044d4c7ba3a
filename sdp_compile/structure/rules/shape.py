"""Views, permutations, concatenations and splits."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.rules import Context, Value, dim_index, dim_indices, rule

aten = torch.ops.aten


def permuted(value: Value, order: Sequence[int]) -> Value:
    return Value(tuple(value.dims[d] for d in order), tuple(value.zero[d] for d in order), value.storage)


@rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints)
@rule(aten.unflatten.int, aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims, aten.unsqueeze.default)
@rule(aten.unsqueeze_.default, aten.squeeze_.dim)
def view(ctx: Context, self: Value, **arguments: Any) -> Value:
    sizes = ctx.out_sizes()
    result = reshaped(ctx, self, sizes)
    if "shape" in arguments or ctx.operator in {"view", "_unsafe_view"}:
        for position, dim in enumerate(result.dims):
            ctx.resize("shape" if "shape" in arguments else "size", position, dim)
    elif ctx.operator == "unflatten":
        start = dim_index(arguments["dim"], self.ndim)
        for position in range(len(arguments["sizes"])):
            ctx.resize("sizes", position, result.dims[start + position])
    return result


@rule(aten.reshape_as.default, aten.view_as.default)
def view_as(ctx: Context, self: Value, other: Value, **_: Any) -> Value:
    result = reshaped(ctx, self, ctx.out_sizes())
    for a, b in zip(result.dims, other.dims, strict=True):  # the shape is the other's, whatever that is cut to
        ctx.unify(a, b)
    return result


def reshaped(ctx: Context, value: Value, sizes: Sequence[int]) -> Value:
    """The same elements, row-major, in dimensions of ``sizes``."""
    if not prod(sizes) or prod(sizes) != prod(map(axes.size, value.dims)):
        ctx.freeze_values(value, text=f"{ctx.operator} to a shape that cannot be followed")
        return ctx.frozen(sizes)
    dims, sources = axes.regroup(value.dims, sizes, ctx.reason(f"{ctx.operator} to a shape that breaks it up"))
    zero = tuple(
        all(value.zero[d] for d in source if axes.size(value.dims[d]) != 1) and axes.size(dim) != 1
        for dim, source in zip(dims, sources, strict=True)
    )
    return Value(tuple(dims), zero, value.storage)


@rule(aten.permute.default)
def permute(ctx: Context, self: Value, dims: Sequence[int], **_: Any) -> Value:
    return permuted(self, dim_indices(dims, self.ndim))


@rule(aten.transpose.int, aten.swapaxes.default, aten.swapdims.default, aten.transpose_.default)
def transpose(ctx: Context, self: Value, **arguments: Any) -> Value:
    a = dim_index(arguments.get("dim0", arguments.get("axis0", 0)), self.ndim)
    b = dim_index(arguments.get("dim1", arguments.get("axis1", 0)), self.ndim)
    order = list(range(self.ndim))
    order[a], order[b] = order[b], order[a]
    return permuted(self, order)


@rule(aten.t.default, aten.numpy_T.default, aten.mT.default, aten.adjoint.default)
def reverse(ctx: Context, self: Value, **_: Any) -> Value:
    order = list(range(self.ndim))
    if ctx.operator == "numpy_T":
        return permuted(self, order[::-1])
    return permuted(self, [*order[:-2], *order[-2:][::-1]])


@rule(aten.movedim.int, aten.movedim.intlist)
def movedim(ctx: Context, self: Value, source: Any, destination: Any, **_: Any) -> Value:
    moved = dim_indices(source, self.ndim)
    targets = dim_indices(destination, self.ndim)
    rest = iter(d for d in range(self.ndim) if d not in moved)
    place = dict(zip(targets, moved, strict=True))
    return permuted(self, [place[d] if d in place else next(rest) for d in range(self.ndim)])


@rule(aten.expand.default)
def expand(ctx: Context, self: Value, **_: Any) -> Value:
    return _expand(ctx, self, ctx.out_sizes())


@rule(aten.expand_as.default)
def expand_as(ctx: Context, self: Value, other: Value, **_: Any) -> Value:
    result = _expand(ctx, self, ctx.out_sizes())
    for a, b in zip(result.dims, other.dims, strict=True):
        ctx.unify(a, b)
    ctx.rewrites.resizes.clear()
    return result


def _expand(ctx: Context, value: Value, sizes: Sequence[int]) -> Value:
    dims: list[Dim] = []
    zero: list[bool] = []
    offset = len(sizes) - value.ndim
    for position, length in enumerate(sizes):
        old = value.dims[position - offset] if position >= offset else ()
        if axes.size(old) == length:
            dims.append(old)
            zero.append(length != 1 and value.zero[position - offset])
        else:  # every index holds the same value, so any cut of the new dimension is fine
            dims.append(axes.fresh(length))
            zero.append(False)
        ctx.resize("size", position, dims[-1])
    return Value(tuple(dims), tuple(zero), value.storage)


@rule(aten.cat.default, aten.concat.default)
def cat(ctx: Context, tensors: Sequence[Value], dim: int = 0, **_: Any) -> Value:
    ndim = max(value.ndim for value in tensors)
    tensors = [value for value in tensors if value.ndim == ndim]  # cat skips legacy empty tensors
    dim = dim_index(dim, ndim)
    dims: list[Dim] = []
    for d in range(ndim):
        if d == dim:
            dims.append(axes.concatenate([value.dims[d] for value in tensors]))
            continue
        for value in tensors[1:]:
            ctx.unify(tensors[0].dims[d], value.dims[d])
        dims.append(tensors[0].dims[d])
    return Value(tuple(dims), tuple(all(v.is_zero(d) for v in tensors) for d in range(ndim)))


@rule(aten.stack.default)
def stack(ctx: Context, tensors: Sequence[Value], dim: int = 0, **_: Any) -> Value:
    first = tensors[0]
    for value in tensors[1:]:
        for a, b in zip(first.dims, value.dims, strict=True):
            ctx.unify(a, b)
    dim = dim_index(dim, first.ndim + 1)
    zero = [all(v.is_zero(d) for v in tensors) for d in range(first.ndim)]
    new = axes.fresh(len(tensors), ctx.reason("stack makes one entry per tensor"))
    return Value((*first.dims[:dim], new, *first.dims[dim:]), (*zero[:dim], False, *zero[dim:]))


@rule(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.split.sizes)
@rule(aten.unsafe_split.Tensor, aten.unsafe_chunk.default)
def split(ctx: Context, self: Value, dim: int = 0, **_: Any) -> list[Value]:
    dim = dim_index(dim, self.ndim)
    lengths = [ctx.sizes_of(part)[dim] for part in ctx.node.meta["val"]]
    parts = axes.split(self.dims[dim], lengths, ctx.reason(f"{ctx.operator} cuts it at a place that breaks it up"))
    ctx.become(aten.split_with_sizes.default)
    for position, part in enumerate(parts):
        ctx.resize("split_sizes", position, part)
    ctx.pin("dim", dim)
    return [Value((*self.dims[:dim], part, *self.dims[dim + 1 :]), self.zero, self.storage) for part in parts]


@rule(aten.unbind.int)
def unbind(ctx: Context, self: Value, dim: int = 0, **_: Any) -> list[Value]:
    dim = dim_index(dim, self.ndim)
    count = axes.size(self.dims[dim])
    return [_without(ctx, self, dim) for _ in range(count)]


@rule(aten.select.int)
def select(ctx: Context, self: Value, dim: int, **_: Any) -> Value:
    return _without(ctx, self, dim_index(dim, self.ndim))


def _without(ctx: Context, value: Value, dim: int) -> Value:
    ctx.freeze(value.dims[dim], text=f"{ctx.operator} picks single indices of it")
    return Value(
        (*value.dims[:dim], *value.dims[dim + 1 :]), (*value.zero[:dim], *value.zero[dim + 1 :]), value.storage
    )


@rule(aten.slice.Tensor, aten.narrow.default)
def slice_(ctx: Context, self: Value, dim: int = 0, step: Any = 1, **arguments: Any) -> Value:
    dim = dim_index(dim, self.ndim)
    whole, kept = axes.size(self.dims[dim]), ctx.out_sizes()[dim]
    if whole == kept and step == 1:
        if arguments.get("end") is not None and isinstance(arguments["end"], int) and 0 < arguments["end"] < 2**62:
            ctx.resize("end", None, self.dims[dim])
        if ctx.operator == "narrow":
            ctx.resize("length", None, self.dims[dim])
        return Value(self.dims, self.zero, self.storage)
    start = arguments.get("start") or 0
    part: Dim
    if step != 1 or not isinstance(start, int):
        ctx.freeze(self.dims[dim], text="slice takes a part of it that cannot be followed")
        part = axes.fresh(kept, ctx.reason())
    else:
        start = min(start + whole if start < 0 else start, whole)
        lengths = [start, kept, whole - start - kept]
        pieces = iter(axes.split(self.dims[dim], [n for n in lengths if n > 0], ctx.reason()))
        before = next(pieces) if lengths[0] > 0 else None
        part = next(pieces) if kept > 0 else axes.fresh(0, ctx.reason())
        prefix = () if before is None else (before,)
        if before is not None:
            ctx.resize("start", None, *prefix)
        if ctx.operator == "narrow":
            ctx.resize("length", None, part)
        elif lengths[2] > 0:
            ctx.resize("end", None, *prefix, part)
    zero = (*self.zero[:dim], self.zero[dim] and axes.size(part) != 1, *self.zero[dim + 1 :])
    return Value((*self.dims[:dim], part, *self.dims[dim + 1 :]), zero, self.storage)


@rule(aten.roll.default)
def roll(ctx: Context, self: Value, dims: Any = None, **_: Any) -> Value:
    rolled = dim_indices(dims, self.ndim)
    ctx.freeze(*(self.dims[d] for d in rolled))
    return Value(self.dims, tuple(self.is_zero(d) and d not in rolled for d in range(self.ndim)))


@rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(ctx: Context, self: Value, pad: Sequence[Any], value: Any = None, **arguments: Any) -> Value:
    zero_fill = arguments.get("mode", "constant") == "constant" and not value
    sizes = ctx.out_sizes()
    dims, zero = list(self.dims), [self.is_zero(d) and zero_fill for d in range(self.ndim)]
    for pair in range(len(pad) // 2):
        d = self.ndim - 1 - pair
        if pad[2 * pair] == 0 and pad[2 * pair + 1] == 0 and isinstance(pad[2 * pair], int):
            continue
        ctx.freeze(self.dims[d])
        dims[d], zero[d] = axes.fresh(sizes[d], ctx.reason()), False
    return Value(tuple(dims), tuple(zero))


@rule(aten.repeat.default)
def repeat(ctx: Context, self: Value, repeats: Sequence[Any], **_: Any) -> Value:
    sizes = ctx.out_sizes()
    offset = len(sizes) - self.ndim
    dims: list[Dim] = []
    zero: list[bool] = []
    for position, length in enumerate(sizes):
        old = self.dims[position - offset] if position >= offset else ()
        if axes.size(old) == length and isinstance(repeats[position], int):
            dims.append(old)
            zero.append(position >= offset and self.is_zero(position - offset))
            continue
        if length % axes.size(old):
            ctx.freeze(old)
            dims.append(axes.fresh(length, ctx.reason()))
        else:
            dims.append((*axes.fresh(length // axes.size(old), ctx.reason("repeat counts it")), *old))
        zero.append(False)
    return Value(tuple(dims), tuple(zero))


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(ctx: Context, self: Value, repeats: Any, dim: Any = None, **_: Any) -> Value:
    if dim is None or not isinstance(repeats, int):
        ctx.freeze_values(self)
        return ctx.frozen()
    dim = dim_index(dim, self.ndim)
    inner = axes.fresh(repeats, ctx.reason("repeat_interleave counts it"))
    return Value((*self.dims[:dim], (*self.dims[dim], *inner), *self.dims[dim + 1 :]), self.zero)


@rule(aten.pixel_shuffle.default, aten.pixel_unshuffle.default)
def pixel_shuffle(ctx: Context, self: Value, **arguments: Any) -> Value:
    sizes = ctx.out_sizes()
    channel = self.ndim - 3
    ctx.freeze(*self.dims[channel + 1 :])
    if ctx.operator == "pixel_unshuffle":
        factor = int(arguments["downscale_factor"])
        channels: Dim = (*self.dims[channel], *axes.fresh(factor * factor, ctx.reason()))
        zero = self.is_zero(channel)
    else:
        factor = int(arguments["upscale_factor"])
        (channels, within), _ = axes.regroup([self.dims[channel]], [sizes[channel], factor * factor], ctx.reason())
        ctx.freeze(within)
        zero = self.is_zero(channel)
    spatial = tuple(axes.fresh(length, ctx.reason()) for length in sizes[channel + 1 :])
    flags = (*(self.is_zero(d) for d in range(channel)), zero, False, False)
    return Value((*self.dims[:channel], channels, *spatial), flags)
