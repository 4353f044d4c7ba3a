"""Concatenation, stacking, repetition and padding: dimensions composed of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators.at_zero import Call, Outcome, keeps_zero, zero_if
from sdp_compile.structure.operators.context import Context, Value, dim_index
from sdp_compile.structure.operators.table import rule

aten = torch.ops.aten


def concatenated(ctx: Context, tensors: Sequence[Value], dim: int) -> Value:
    """Returns the concatenation of values along ``dim``, without the empty ones that ``cat`` skips."""
    ndim = max(value.ndim for value in tensors)
    tensors = [value for value in tensors if value.ndim == ndim]
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


def _all_zero(call: Call) -> Outcome:
    return zero_if(all(map(call.is_zero, call.arguments["tensors"])))


@rule(aten.cat.default, aten.concat.default, aten.concatenate.default, at_zero=_all_zero)
def cat(ctx: Context, tensors: Sequence[Value], dim: int = 0, **_: Any) -> Value:
    return concatenated(ctx, tensors, dim)


@rule(aten.hstack.default, aten.vstack.default, aten.dstack.default, aten.column_stack.default, at_zero=_all_zero)
def named_stack(ctx: Context, tensors: Sequence[Value], **_: Any) -> Value:
    dim = {"hstack": 1, "vstack": 0, "dstack": 2, "column_stack": 1}[ctx.operator]
    ndim = len(ctx.out_sizes())
    if any(value.ndim != ndim for value in tensors) or dim >= ndim:
        ctx.freeze_values(*tensors, text=f"{ctx.operator} of tensors with too few dimensions")
        return ctx.frozen()
    return concatenated(ctx, tensors, dim)


@rule(aten.stack.default, at_zero=_all_zero)
def stack(ctx: Context, tensors: Sequence[Value], dim: int = 0, **_: Any) -> Value:
    first = tensors[0]
    for value in tensors[1:]:
        for a, b in zip(first.dims, value.dims, strict=True):
            ctx.unify(a, b)
    dim = dim_index(dim, first.ndim + 1)
    zero = [all(v.is_zero(d) for v in tensors) for d in range(first.ndim)]
    new = axes.fresh(len(tensors), ctx.reason("stack makes one entry per tensor"))
    return Value((*first.dims[:dim], new, *first.dims[dim:]), (*zero[:dim], False, *zero[dim:]))


@rule(aten.repeat.default, aten.tile.default, at_zero=keeps_zero)
def repeat(ctx: Context, self: Value, **_: Any) -> Value:
    sizes = ctx.out_sizes()
    offset = len(sizes) - self.ndim
    dims: list[Dim] = []
    zero: list[bool] = []
    for position, length in enumerate(sizes):
        old = self.dims[position - offset] if position >= offset else ()
        zero.append(position >= offset and self.is_zero(position - offset) and axes.size(old) != 1)
        if axes.size(old) == length:
            dims.append(old)
        elif axes.size(old) == 1:  # every index holds the same value, so any cut of the new dimension is fine
            dims.append(axes.fresh(length))
            if ctx.operator == "repeat":
                ctx.resize("repeats", position, dims[-1])
            else:
                ctx.freeze(dims[-1])
        elif not axes.size(old) or length % axes.size(old):
            ctx.freeze(old)
            dims.append(axes.fresh(length, ctx.reason()))
        else:
            times = axes.fresh(length // axes.size(old), ctx.reason(f"{ctx.operator} counts it"))
            dims.append((*times, *old))
    return Value(tuple(dims), tuple(zero))


@rule(aten.repeat_interleave.self_int, at_zero=keeps_zero)
def repeat_interleave(ctx: Context, self: Value, repeats: Any, dim: int | None = None, **arguments: Any) -> Value:
    if dim is None or not isinstance(repeats, int):
        ctx.freeze_values(self)
        return ctx.frozen()
    dim = dim_index(dim, self.ndim)
    if axes.size(self.dims[dim]) == 1:  # every index holds the same value, so any cut of the new dimension is fine
        inner = axes.fresh(repeats)
        ctx.resize("repeats", None, inner)
    else:
        inner = axes.fresh(repeats, ctx.reason("repeat_interleave counts it"))
    whole = (*self.dims[dim], *inner)
    if arguments.get("output_size") is not None:
        ctx.resize("output_size", None, whole)
    zero = tuple(self.is_zero(d) and axes.size(self.dims[d]) != 1 for d in range(self.ndim))
    return Value((*self.dims[:dim], whole, *self.dims[dim + 1 :]), zero)


@rule(aten.repeat_interleave.self_Tensor)
def repeat_interleave_each(ctx: Context, self: Value, repeats: Value, dim: int | None = None, **_: Any) -> Value:
    ctx.freeze_values(repeats)
    if dim is None:
        ctx.freeze_values(self)
        return ctx.frozen()
    return ctx.within(self, [dim])


def _padded(call: Call) -> Outcome:
    constant = call.arguments.get("mode", "constant") == "constant"
    return zero_if(call.zero("self") and (not constant or call.absent("value")))


@rule(aten.pad.default, aten.constant_pad_nd.default, at_zero=_padded)
def pad(ctx: Context, self: Value, pad: Sequence[Any], value: Any = None, mode: str = "constant") -> Value:
    """A constant border adds two parts to a dimension; any other border needs the whole dimension."""
    sizes = ctx.out_sizes()
    keeps_zero = mode != "constant" or not value
    dims, zero = list(self.dims), [keeps_zero and self.is_zero(d) for d in range(self.ndim)]
    for pair in range(len(pad) // 2):
        d, amounts = self.ndim - 1 - pair, pad[2 * pair : 2 * pair + 2]
        known = all(isinstance(amount, int) and amount >= 0 for amount in amounts)
        if known and not any(amounts):
            continue
        if mode != "constant" or not known:
            ctx.freeze(self.dims[d])
            dims[d], zero[d] = axes.fresh(sizes[d], ctx.reason()), False
            continue
        borders = [axes.fresh(amount) if amount else None for amount in amounts]
        for side, border in enumerate(borders):
            if border is not None:
                ctx.resize("pad", 2 * pair + side, border)
        dims[d] = axes.concatenate([part for part in (borders[0], self.dims[d], borders[1]) if part is not None])
    return Value(tuple(dims), tuple(zero))


@rule(aten.meshgrid.default, aten.meshgrid.indexing)
def meshgrid(ctx: Context, tensors: Sequence[Value], indexing: str = "ij", **_: Any) -> list[Value]:
    order = list(range(len(tensors)))
    if indexing == "xy" and len(order) > 1:
        order[:2] = [1, 0]
    dims = tuple(tensors[n].dims[0] if tensors[n].ndim else () for n in order)
    return [
        Value(dims, tuple(n == own and value.ndim == 1 and value.is_zero(0) for n in order))
        for own, value in enumerate(tensors)
    ]
