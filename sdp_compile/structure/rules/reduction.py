"""Reductions and softmax: what they run over stays whole, unless missing units contribute exactly nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.structure.axes import Dim
from sdp_compile.structure.rules import Context, Value, dim_indices, rule

aten = torch.ops.aten


def reduce(ctx: Context, value: Value, dims: int | Sequence[int] | None, keepdim: bool, additive: bool) -> Value:
    """The result of a reduction over ``dims``; an additive one may run over a dimension that is 0 at missing units."""
    gone = set(dim_indices(dims, value.ndim))
    for d in gone:
        if not (additive and value.is_zero(d)):
            ctx.freeze(value.dims[d])
    kept: list[tuple[Dim, bool]] = []
    for d in range(value.ndim):
        if d not in gone:
            kept.append((value.dims[d], value.is_zero(d)))
        elif keepdim:
            kept.append(((), False))
    return Value(tuple(dim for dim, _ in kept), tuple(zero for _, zero in kept))


@rule(aten.sum.dim_IntList, aten.sum.default)
def additive(ctx: Context, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return reduce(ctx, self, dim, bool(keepdim), additive=True)


@rule(aten.linalg_vector_norm.default)
def vector_norm(ctx: Context, self: Value, ord: float, dim: Any, keepdim: bool, **_: Any) -> Value:
    # A norm of order above 1 has a gradient of 0 at 0; below, missing units would count or break the gradient.
    return reduce(ctx, self, dim, bool(keepdim), additive=float(ord) >= 1)


@rule(aten.mean.dim, aten.mean.default, aten.amax.default, aten.amin.default, aten.logsumexp.default)
def exclusive(ctx: Context, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    # A mean divides by the length; an extremum or log-sum-exp may pick a missing unit.
    result = reduce(ctx, self, dim, bool(keepdim), additive=False)
    if ctx.operator == "logsumexp":
        return Value(result.dims, (False,) * result.ndim)
    return result


@rule(aten.var.correction, aten.std.correction, aten.var.dim, aten.std.dim)
@rule(aten.var_mean.correction, aten.std_mean.correction, aten.var_mean.dim, aten.std_mean.dim)
def moments(ctx: Context, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value | list[Value]:
    # Of zeros they are 0, and so is their gradient.
    result = reduce(ctx, self, dim, bool(keepdim), additive=False)
    return [result, result] if "mean" in ctx.operator else result


@rule(aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default)
def softmax(ctx: Context, self: Value, dim: int, **_: Any) -> Value:
    ctx.freeze(self.dims[dim])
    return Value(self.dims, (False,) * self.ndim)


@rule(aten.cumsum.default, aten.cumprod.default, aten.flip.default)
def along(ctx: Context, self: Value, **arguments: Any) -> Value:
    dims = dim_indices(arguments.get("dim", arguments.get("dims")), self.ndim)
    ctx.freeze(*(self.dims[d] for d in dims))
    return Value(self.dims, tuple(self.is_zero(d) and d not in dims for d in range(self.ndim)))
