"""Writing to indices: indexed dimensions stay whole, all others pass through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.operators.at_zero import Call, Outcome, zero_if
from sdp_compile.structure.operators.context import Context, Value, dim_index
from sdp_compile.structure.operators.elementwise import aligned_zero
from sdp_compile.structure.operators.indexing import looked_up
from sdp_compile.structure.operators.table import declare, rule

aten = torch.ops.aten


def _scattered(call: Call) -> Outcome:
    return zero_if(call.zero("self") and call.zero("values", "source", "src", "value"))


declare("slice_scatter", "select_scatter", "masked_scatter", at_zero=_scattered)


def _written(ctx: Context, target: Value, zero: Sequence[bool]) -> Value:
    """Returns the result: ``target`` itself for an in-place operator."""
    return ctx.writes(target, zero) if ctx.operator.endswith("_") else Value(target.dims, tuple(zero))


def _amount_is_zero(value: Any, d: int) -> bool:
    return value.is_zero(d) if isinstance(value, Value) and value.ndim else not isinstance(value, Value) and value == 0


@rule(
    aten.scatter,
    aten.scatter_,
    aten.scatter_add,
    aten.scatter_add_,
    aten.scatter_reduce,
    aten.scatter_reduce_,
    at_zero=_scattered,
)
def scatter(ctx: Context, self: Value, dim: int, index: Value, **arguments: Any) -> Value:
    """Writes one value for each element of ``index``; if that is shorter than the tensor, neither is cut."""
    source = arguments.get("src", arguments.get("value"))
    dim = dim_index(dim, self.ndim)
    ctx.freeze(self.dims[dim], index.dims[dim], text=f"{ctx.operator} writes to it by number")
    operands = [index, source] if isinstance(source, Value) else [index]
    for d in range(self.ndim):
        for operand in operands:
            ctx.unify_equal(self.dims[d] if d != dim else index.dims[d], operand.dims[d])
    kept = arguments.get("reduce") in (None, "sum", "add", "mean", "amax", "amin")
    zero = [kept and d != dim and self.is_zero(d) and _amount_is_zero(source, d) for d in range(self.ndim)]
    return _written(ctx, self, zero)


@rule(aten.index_add.default, aten.index_add_.default, at_zero=_scattered)
@rule(aten.index_copy.default, aten.index_copy_.default, at_zero=_scattered)
@rule(aten.index_fill, aten.index_fill_, at_zero=_scattered)
def index_write(ctx: Context, self: Value, dim: int, index: Value, **arguments: Any) -> Value:
    """Writes slices of ``source``, or one number, at the positions ``index`` of ``dim``."""
    source = arguments.get("source", arguments.get("value"))
    dim = dim_index(dim, self.ndim)
    ctx.freeze(self.dims[dim], text=f"{ctx.operator} writes to it by number")
    ctx.freeze_values(index)
    if isinstance(source, Value) and source.ndim:
        for d in range(self.ndim):
            if d == dim:
                ctx.freeze(source.dims[d])
            else:
                ctx.unify(self.dims[d], source.dims[d])
    zero = [d != dim and self.is_zero(d) and _amount_is_zero(source, d) for d in range(self.ndim)]
    return _written(ctx, self, zero)


@rule(aten.index_put.default, aten.index_put_.default, at_zero=_scattered)
def index_put(ctx: Context, self: Value, indices: Sequence[Value | None], values: Value, **_: Any) -> Value:
    """Computes ``self[indices] = values``, or ``+=``; values are broadcast to the shape of ``self[indices]``."""
    sources = looked_up(ctx, self, indices)
    zero = [False] * self.ndim
    for position, d in enumerate(sources, start=-len(sources)):
        if d is not None:
            zero[d] = self.is_zero(d) and aligned_zero(values, position)
        if values.ndim >= -position and axes.size(values.dims[position]) != 1:
            if d is None:
                ctx.freeze(values.dims[position])
            else:
                ctx.unify(self.dims[d], values.dims[position])
    return _written(ctx, self, zero)
