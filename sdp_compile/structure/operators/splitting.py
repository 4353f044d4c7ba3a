"""Splits, slices and single indices: parts of a dimension."""

from __future__ import annotations

from typing import Any

import torch

from sdp_compile.structure import axes, views
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators.at_zero import keeps_zero
from sdp_compile.structure.operators.context import Context, Value, dim_index
from sdp_compile.structure.operators.table import rule

aten = torch.ops.aten


@rule(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.split.sizes, at_zero=keeps_zero)
@rule(aten.unsafe_split.Tensor, aten.unsafe_chunk.default, aten.unsafe_split_with_sizes.default, at_zero=keeps_zero)
@rule(aten.tensor_split.sections, aten.tensor_split.indices, at_zero=keeps_zero)
@rule(aten.hsplit, aten.vsplit, aten.dsplit, at_zero=keeps_zero)
def split(ctx: Context, self: Value, dim: int = 0, **_: Any) -> list[Value]:
    if ctx.operator in ("hsplit", "vsplit", "dsplit"):
        dim = {"hsplit": min(1, self.ndim - 1), "vsplit": 0, "dsplit": 2}[ctx.operator]
    dim = dim_index(dim, self.ndim)
    lengths = [ctx.sizes_of(part)[dim] for part in ctx.node.meta["val"]]
    parts = axes.split(self.dims[dim], lengths, ctx.reason(f"{ctx.operator} cuts it at a place that breaks it up"))
    ctx.become(aten.split_with_sizes.default)
    for position, part in enumerate(parts):
        ctx.resize("split_sizes", position, part)
    ctx.pin("dim", dim)
    return [Value((*self.dims[:dim], part, *self.dims[dim + 1 :]), self.zero, self.storage) for part in parts]


@rule(aten.unbind.int, at_zero=keeps_zero)
def unbind(ctx: Context, self: Value, dim: int = 0, **_: Any) -> list[Value]:
    dim = dim_index(dim, self.ndim)
    count = axes.size(self.dims[dim])
    return [_without(ctx, self, dim) for _ in range(count)]


@rule(aten.select.int, at_zero=keeps_zero)
def select(ctx: Context, self: Value, dim: int, **_: Any) -> Value:
    return _without(ctx, self, dim_index(dim, self.ndim))


def _without(ctx: Context, value: Value, dim: int) -> Value:
    ctx.freeze(value.dims[dim], text=f"{ctx.operator} picks single indices of it")
    return Value(
        (*value.dims[:dim], *value.dims[dim + 1 :]), (*value.zero[:dim], *value.zero[dim + 1 :]), value.storage
    )


@rule(aten.slice.Tensor, aten.narrow.default, at_zero=keeps_zero)
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
    if step != 1 and isinstance(start, int) and 0 <= start < step and kept * step == whole:
        # The dimension consists of groups of ``step`` indices; the slice takes one of each.
        (part, within), _ = views.regroup([self.dims[dim]], [kept, step], ctx.reason())
        ctx.freeze(within, text="slice takes one index of every few")
        ctx.pin("end", None)
    elif step != 1 or not isinstance(start, int):
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
