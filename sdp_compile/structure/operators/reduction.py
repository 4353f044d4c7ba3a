"""Reductions and losses: reduced dimensions stay whole, unless missing units contribute nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.ops.of_full import mean_of_full
from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators.at_zero import Call, Outcome, keeps_zero, undefined_if_any, zero_if
from sdp_compile.structure.operators.context import Context, Value, dim_indices
from sdp_compile.structure.operators.table import declare, rule

aten = torch.ops.aten


def reduce(ctx: Context, value: Value, dims: int | Sequence[int] | None, keepdim: bool, additive: bool) -> Value:
    """Returns the result of a reduction over ``dims``; additive ones may reduce what is 0 at missing units."""
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


@rule(aten.sum.dim_IntList, aten.sum.default, aten.nansum.default, at_zero=keeps_zero)
@rule(aten.count_nonzero.default, aten.count_nonzero.dim_IntList, at_zero=keeps_zero)
@rule(aten.any.default, aten.any.dim, aten.any.dims, at_zero=keeps_zero)
def additive(ctx: Context, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return reduce(ctx, self, dim, bool(keepdim), additive=True)


@rule(aten.linalg_vector_norm.default, at_zero=keeps_zero)
def vector_norm(ctx: Context, self: Value, ord: float, dim: Any, keepdim: bool, **_: Any) -> Value:
    # From order 1, missing units add nothing and get the gradient 0; below, they count or have no gradient.
    return reduce(ctx, self, dim, bool(keepdim), additive=float(ord) >= 1)


@rule(aten.norm.Scalar, aten.norm.ScalarOpt_dim, at_zero=keeps_zero)
def norm(ctx: Context, self: Value, p: Any, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return reduce(ctx, self, dim, bool(keepdim), additive=p is None or float(p) >= 1)


@rule(aten.frobenius_norm.dim, at_zero=keeps_zero)
def frobenius_norm(ctx: Context, self: Value, dim: Any, keepdim: bool, **_: Any) -> Value:
    return reduce(ctx, self, dim, keepdim, additive=True)


@rule(aten.mean.dim, aten.mean.default, at_zero=keeps_zero)
def mean(ctx: Context, self: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None, **_: Any) -> Value:
    """Divides by the length in the full model, also where a worker holds only the units that are not 0."""
    gone = dim_indices(dim, self.ndim)
    cut = [d for d in gone if self.is_zero(d) and any(root.frozen is None for root in axes.expand(self.dims[d]))]
    result = reduce(ctx, self, gone, bool(keepdim), additive=True)
    if cut:
        ctx.become(mean_of_full)
        for name, value in {"dim": gone, "keepdim": keepdim, "dtype": dtype}.items():
            ctx.pin(name, value)
        ctx.pin("full", [axes.size(self.dims[d]) for d in cut])
        for position, d in enumerate(cut):
            ctx.resize("kept", position, self.dims[d])
    return result


def _extremum(call: Call) -> Outcome:
    return zero_if(call.zero("self") and ("other" not in call.arguments or call.zero("other")))


declare("max", "min", at_zero=_extremum)


@rule(aten.amax.default, aten.amin.default, at_zero=keeps_zero)
@rule(aten.logsumexp.default)
@rule(aten.max.default, aten.min.default, aten.prod.default, aten.prod.dim_int, aten.median.default)
@rule(aten.all.default, aten.all.dim, aten.all.dims)
def exclusive(ctx: Context, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    # An extremum or log-sum-exp may pick a missing unit.
    result = reduce(ctx, self, dim, bool(keepdim), additive=False)
    if ctx.operator == "logsumexp":
        return Value(result.dims, (False,) * result.ndim)
    return result


@rule(aten.var.correction, aten.std.correction, aten.var.dim, aten.std.dim)
@rule(aten.var_mean.correction, aten.std_mean.correction, aten.var_mean.dim, aten.std_mean.dim)
def moments(ctx: Context, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value | list[Value]:
    # The moments of zeros are 0, and so are their gradients.
    result = reduce(ctx, self, dim, bool(keepdim), additive=False)
    return [result, result] if "mean" in ctx.operator else result


@rule(aten.max.dim, aten.min.dim, aten.median.dim, aten.nanmedian.dim, aten.kthvalue.default, aten.mode.default)
@rule(aten.aminmax.default)
def picked(ctx: Context, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> list[Value]:
    """Returns a value and its position; among equal values, as at a missing unit, any may be picked."""
    result = reduce(ctx, self, dim, bool(keepdim), additive=False)
    return [result, Value(result.dims, (False,) * result.ndim)]


@rule(aten.argmax.default, aten.argmin.default)
def argmax(ctx: Context, self: Value, dim: int | None = None, keepdim: bool = False, **_: Any) -> Value:
    result = reduce(ctx, self, dim, bool(keepdim), additive=False)
    return Value(result.dims, (False,) * result.ndim)


@rule(aten.cross_entropy_loss, aten.nll_loss, aten.nll_loss2d, aten.nll_loss_nd, aten.mse_loss, aten.l1_loss)
@rule(aten.smooth_l1_loss, aten.huber_loss, aten.binary_cross_entropy_with_logits, aten.ctc_loss)
@rule(aten.binary_cross_entropy, aten.kl_div, aten.poisson_nll_loss, at_zero=undefined_if_any)
@rule(aten.cosine_embedding_loss, aten.triplet_margin_loss)
@rule(aten.margin_ranking_loss, aten.hinge_embedding_loss, aten.soft_margin_loss, aten.multi_margin_loss)
@rule(aten.multilabel_margin_loss)
def loss(ctx: Context, **arguments: Any) -> Value:
    values = [value for value in arguments.values() if isinstance(value, Value)]
    ctx.freeze_values(*values, text="a loss is taken over it")
    return ctx.frozen()
