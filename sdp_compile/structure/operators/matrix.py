"""Other products: outer, Kronecker and cross products, distances, grouped products of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators.at_zero import either_zero, product_and_sum, undefined, undefined_if_any
from sdp_compile.structure.operators.context import Context, Value, dim_index, dim_indices
from sdp_compile.structure.operators.contraction import contract, plus
from sdp_compile.structure.operators.elementwise import aligned_zero, broadcast
from sdp_compile.structure.operators.table import declare, rule

aten = torch.ops.aten


# Without a rule; those of ``linalg`` are unknown as a whole.
declare("cholesky_inverse", "corrcoef", "inverse", "logdet", "multinomial", "slogdet", "svd", at_zero=undefined)
declare("cholesky_solve", "triangular_solve", at_zero=undefined_if_any)


@rule(aten.outer.default, aten.ger.default, at_zero=either_zero)
def outer(ctx: Context, self: Value, vec2: Value, **_: Any) -> Value:
    return contract(ctx, [self, vec2], ["i", "j"], "ij")


@rule(aten.inner.default, aten.vdot.default, aten.linalg_vecdot.default, at_zero=either_zero)
def inner(ctx: Context, **operands: Any) -> Value:
    values = [value for value in operands.values() if isinstance(value, Value)]
    if ctx.operator == "linalg_vecdot":
        if operands.get("dim", -1) != -1 or len({value.ndim for value in values}) > 1:
            ctx.freeze_values(*values)
            return ctx.frozen()
        names = [str(d) for d in range(values[0].ndim)]
        return contract(ctx, values, [names, names], names[:-1])
    left, right = ([f"{side}{d}" for d in range(v.ndim - 1)] for side, v in zip("ab", values, strict=True))
    return contract(ctx, values, [[*left, "k"], [*right, "k"]], [*left, *right])


@rule(aten.tensordot.default, at_zero=either_zero)
def tensordot(ctx: Context, self: Value, other: Value, dims_self: Sequence[int], dims_other: Sequence[int]) -> Value:
    left, right = [f"a{d}" for d in range(self.ndim)], [f"b{d}" for d in range(other.ndim)]
    pairs = zip(dim_indices(dims_self, self.ndim), dim_indices(dims_other, other.ndim), strict=True)
    for a, b in pairs if dims_self else ():
        right[b] = left[a]
    out = [*(n for n in left if n not in right), *(n for n in right if n not in left)]
    return contract(ctx, [self, other], [left, right], out)


@rule(aten.kron.default, at_zero=either_zero)
def kron(ctx: Context, self: Value, other: Value, **_: Any) -> Value:
    ndim = max(self.ndim, other.ndim)
    dims: list[Dim] = []
    zero: list[bool] = []
    for position in range(-ndim, 0):
        factors = [v for v in (self, other) if v.ndim >= -position and axes.size(v.dims[position]) != 1]
        dims.append(tuple(axis for v in factors for axis in v.dims[position]))
        zero.append(bool(factors) and all(v.is_zero(position) for v in factors))
    return Value(tuple(dims), tuple(zero))


@rule(aten.cross.default, aten.linalg_cross.default, at_zero=either_zero)
def cross(ctx: Context, self: Value, other: Value, dim: int | None = -1, **_: Any) -> Value:
    if dim is None:  # the first dimension of size 3
        ctx.freeze_values(self, other)
        return ctx.frozen()
    dims = broadcast(ctx, [self, other])
    ctx.freeze(dims[dim])
    mixed = dim_index(dim, len(dims)) - len(dims)
    zeros = (p != mixed and (aligned_zero(self, p) or aligned_zero(other, p)) for p in range(-len(dims), 0))
    return Value(dims, tuple(zeros))


@rule(aten.cdist.default, aten._cdist_forward.default)
def cdist(ctx: Context, x1: Value, x2: Value, p: float, **_: Any) -> Value:
    """Distances over the last dimension; from order 1, coordinates that are 0 in both do not count."""
    ctx.unify(x1.dims[-1], x2.dims[-1])
    if not (p >= 1 and x1.is_zero(-1) and x2.is_zero(-1)):
        ctx.freeze(x1.dims[-1])
    batch = broadcast(ctx, [_leading(x1), _leading(x2)])
    return Value((*batch, x1.dims[-2], x2.dims[-2]), (False,) * (len(batch) + 2))


def _leading(value: Value) -> Value:
    return Value(value.dims[:-2], value.zero[:-2])


@rule(aten.cosine_similarity.default)
def cosine_similarity(ctx: Context, x1: Value, x2: Value, dim: int, **_: Any) -> Value:
    """Coordinates that are 0 in both do not count; two zero vectors have the similarity 0."""
    dims = broadcast(ctx, [x1, x2])
    mixed = dim_index(dim, len(dims)) - len(dims)
    zeros = {p: aligned_zero(x1, p) and aligned_zero(x2, p) for p in range(-len(dims), 0)}
    if not zeros.pop(mixed):
        ctx.freeze(dims[mixed])
    return Value(tuple(dims[p] for p in zeros), tuple(zeros.values()))


@rule(aten.addr.default, at_zero=product_and_sum)
def addr(ctx: Context, self: Value, vec1: Value, vec2: Value, **_: Any) -> Value:
    return plus(ctx, contract(ctx, [vec1, vec2], ["i", "j"], "ij"), self)


@rule(aten.addmv.default, at_zero=product_and_sum)
def addmv(ctx: Context, self: Value, mat: Value, vec: Value, **_: Any) -> Value:
    return plus(ctx, contract(ctx, [mat, vec], ["ij", "j"], "i"), self)


@rule(aten.addbmm.default, at_zero=product_and_sum)
def addbmm(ctx: Context, self: Value, batch1: Value, batch2: Value, **_: Any) -> Value:
    return plus(ctx, contract(ctx, [batch1, batch2], ["bij", "bjk"], "ik"), self)


@rule(aten._grouped_mm.default, "transformers::grouped_mm_fallback", at_zero=either_zero)
def grouped_mm(ctx: Context, **arguments: Any) -> Value:
    """(tokens, in) times (experts, in, out): expert ``e`` multiplies the rows ``offs[e - 1]`` to ``offs[e]``."""
    tokens, experts, offsets, *rest = (value for value in arguments.values() if isinstance(value, Value))
    ctx.freeze(tokens.dims[0], experts.dims[0], *offsets.dims, text=f"{ctx.operator} counts tokens per expert")
    if rest or tokens.ndim != 2 or experts.ndim != 3:
        ctx.freeze_values(tokens, experts, *rest)
        return ctx.frozen()
    product = contract(ctx, [tokens, experts], ["ti", "eio"], "teo")
    return Value((product.dims[0], product.dims[2]), (False, product.zero[2]))
