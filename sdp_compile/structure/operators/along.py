"""Operators that mix the indices of some dimensions and treat those of all others alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.operators.at_zero import keeps_zero
from sdp_compile.structure.operators.context import Context, Value, dim_index, dim_indices
from sdp_compile.structure.operators.table import rule

aten = torch.ops.aten


@rule(aten.flip.default, aten.roll.default, at_zero=keeps_zero)
def moved(ctx: Context, self: Value, dims: Sequence[int], **_: Any) -> Value:
    """Without ``dims``, ``roll`` moves the elements of the flat tensor."""
    return ctx.within(self, dim_indices(dims, self.ndim), argument="self" if dims else None)


@rule(aten.fliplr.default, aten.flipud.default, at_zero=keeps_zero)
def mirrored(ctx: Context, self: Value, **_: Any) -> Value:
    return ctx.within(self, [1 if ctx.operator == "fliplr" else 0], argument="self")


@rule(aten.rot90.default, at_zero=keeps_zero)
def rot90(ctx: Context, self: Value, k: int, dims: Sequence[int], **_: Any) -> Value:
    return ctx.within(self, dims)


@rule(aten.tril.default, aten.triu.default, aten.tril_.default, aten.triu_.default, at_zero=keeps_zero)
def triangle(ctx: Context, self: Value, **_: Any) -> Value:
    result = ctx.within(self, [-2, -1])
    return ctx.writes(self, result.zero) if ctx.operator.endswith("_") else result


@rule(aten.cumsum.default, aten.cumsum_.default, at_zero=keeps_zero)
def cumsum(ctx: Context, self: Value, dim: int, **_: Any) -> Value:
    """A prefix sum needs only the earlier units that are not 0; it is itself non-zero at missing positions."""
    dim = dim_index(dim, self.ndim)
    if not self.is_zero(dim):
        ctx.freeze(self.dims[dim])
    zero = tuple(self.is_zero(d) and d != dim for d in range(self.ndim))
    return ctx.writes(self, zero) if ctx.operator.endswith("_") else Value(self.dims, zero)


@rule(aten.cumprod.default, at_zero=keeps_zero)
def cumprod(ctx: Context, self: Value, dim: int, **_: Any) -> Value:
    return ctx.within(self, [dim])


@rule(aten.logcumsumexp.default)
def logcumsumexp(ctx: Context, self: Value, dim: int, **_: Any) -> Value:
    return ctx.within(self, [dim], zero=False)


@rule(aten.diff.default)
def diff(ctx: Context, self: Value, dim: int, prepend: Value | None, append: Value | None, **_: Any) -> Value:
    parts = [part for part in (prepend, append) if part is not None]
    for part in parts:
        for d in range(self.ndim):
            if d != dim_index(dim, self.ndim):
                ctx.unify(self.dims[d], part.dims[d])
        ctx.freeze(part.dims[dim])
    return ctx.within(self, [dim], zero=not parts)


@rule(aten.sort.default, aten.sort.stable, aten.topk.default, aten.cummax.default, aten.cummin.default)
def ordered(ctx: Context, self: Value, dim: int = -1, **_: Any) -> list[Value]:
    """Sorts values and returns where they stood; the positions of equal values are arbitrary."""
    return [ctx.within(self, [dim]), ctx.within(self, [dim], zero=False)]


@rule(aten.argsort.default, aten.argsort.stable)
def argsort(ctx: Context, self: Value, dim: int = -1, **_: Any) -> Value:
    return ctx.within(self, [dim], zero=False)


@rule(aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default)
@rule(aten.special_softmax.default, aten.special_log_softmax.default)
def softmax(ctx: Context, self: Value, dim: int, **_: Any) -> Value:
    ctx.freeze(self.dims[dim])
    return Value(self.dims, (False,) * self.ndim)


@rule(aten.unfold.default, at_zero=keeps_zero)
def unfold(ctx: Context, self: Value, dimension: int, **_: Any) -> Value:
    """Windows along a dimension become a new last dimension."""
    sizes = ctx.out_sizes()
    result = ctx.within(self, [dimension], sizes[:-1])
    return Value((*result.dims, axes.fresh(sizes[-1], ctx.reason())), (*result.zero, False), self.storage)


@rule(aten.diagonal.default, at_zero=keeps_zero)
def diagonal(ctx: Context, self: Value, dim1: int = 0, dim2: int = 1, **_: Any) -> Value:
    pair = dim_indices([dim1, dim2], self.ndim)
    ctx.freeze(*(self.dims[d] for d in pair))
    rest = [d for d in range(self.ndim) if d not in pair]
    new = axes.fresh(ctx.out_sizes()[-1], ctx.reason())
    return Value((*(self.dims[d] for d in rest), new), (*(self.is_zero(d) for d in rest), False), self.storage)


@rule(aten.diag_embed.default, at_zero=keeps_zero)
def diag_embed(ctx: Context, self: Value, dim1: int = -2, dim2: int = -1, **_: Any) -> Value:
    sizes = ctx.out_sizes()
    pair = dim_indices([dim1, dim2], len(sizes))
    ctx.freeze(self.dims[-1])
    rest = iter(range(self.ndim - 1))
    source = [None if d in pair else next(rest) for d in range(len(sizes))]
    return Value(
        tuple(axes.fresh(sizes[d], ctx.reason()) if s is None else self.dims[s] for d, s in enumerate(source)),
        tuple(s is not None and self.is_zero(s) for s in source),
    )


@rule(aten.one_hot.default)
def one_hot(ctx: Context, self: Value, **_: Any) -> Value:
    return Value((*self.dims, axes.fresh(ctx.out_sizes()[-1], ctx.reason())), (False,) * (self.ndim + 1))


@rule(aten.bucketize.Tensor)
def bucketize(ctx: Context, self: Value, boundaries: Value, **_: Any) -> Value:
    ctx.freeze_values(boundaries)
    return Value(self.dims, (False,) * self.ndim)
