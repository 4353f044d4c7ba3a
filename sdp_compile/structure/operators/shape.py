"""Views, permutations and expansions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from sdp_compile.ir.schema import bind
from sdp_compile.structure import axes, views
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators.at_zero import Call, Outcome, keeps_zero, zero_if
from sdp_compile.structure.operators.context import Context, Value, dim_index, dim_indices
from sdp_compile.structure.operators.table import rule

aten = torch.ops.aten


def permuted(value: Value, order: Sequence[int]) -> Value:
    return Value(tuple(value.dims[d] for d in order), tuple(value.zero[d] for d in order), value.storage)


def _viewed(call: Call) -> Outcome:
    return zero_if("size" in call.arguments and call.zero("self"))  # -0.0 seen as another dtype is not 0


@rule(aten.view.default, at_zero=_viewed)
@rule(aten._unsafe_view.default, aten.reshape.default, aten.flatten.using_ints, at_zero=keeps_zero)
@rule(aten.unflatten.int, aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims, at_zero=keeps_zero)
@rule(aten.unsqueeze.default, at_zero=keeps_zero)
@rule(aten.unsqueeze_.default, aten.squeeze_.default, aten.squeeze_.dim, aten.squeeze_.dims)
@rule(aten.ravel.default, at_zero=keeps_zero)
@rule(aten.atleast_1d.default, aten.atleast_2d.default, aten.atleast_3d.default, at_zero=keeps_zero)
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


@rule(aten.reshape_as.default, aten.view_as.default, at_zero=keeps_zero)
def view_as(ctx: Context, self: Value, other: Value, **_: Any) -> Value:
    result = reshaped(ctx, self, ctx.out_sizes())
    for a, b in zip(result.dims, other.dims, strict=True):  # a cut of one is a cut of the other
        ctx.unify(a, b)
    return result


def reshaped(ctx: Context, value: Value, sizes: Sequence[int]) -> Value:
    """Returns the same elements, in row-major order, with other sizes."""
    reason = ctx.reason(f"{ctx.operator} to a shape that breaks it up")
    if not prod(sizes) or not prod(map(axes.size, value.dims)):
        ctx.freeze_values(value, text=f"{ctx.operator} to a shape that cannot be followed")
        return ctx.frozen(sizes)
    if prod(sizes) == prod(map(axes.size, value.dims)):
        dims, _sources = views.regroup(value.dims, sizes, reason)
    else:
        dims = views.regroup_free(value.dims, sizes, reason)
    # A merged dimension is 0 at missing units if every dimension in it that may be cut is.
    doubtful = {root for d, dim in enumerate(value.dims) if not value.zero[d] for root in axes.expand(dim)}
    free = [[root for root in axes.expand(dim) if root.frozen is None] for dim in dims]
    zero = tuple(bool(roots) and not doubtful.intersection(roots) for roots in free)
    return Value(tuple(dims), zero, value.storage)


def _permuted(view: fx.Node, dim: int) -> int:
    order = bind(view)["dims"]
    return [int(d) % view.meta["val"].ndim for d in order].index(dim)


@rule(aten.permute.default, at_zero=keeps_zero, view=_permuted)
def permute(ctx: Context, self: Value, dims: Sequence[int], **_: Any) -> Value:
    return permuted(self, dim_indices(dims, self.ndim))


def _transposed(view: fx.Node, dim: int) -> int:
    arguments, ndim = bind(view), int(view.meta["val"].ndim)
    first, second = (int(arguments.get(name, default)) % ndim for name, default in (("dim0", 0), ("dim1", ndim - 1)))
    return {first: second, second: first}.get(dim, dim)


@rule(aten.transpose.int, at_zero=keeps_zero, view=_transposed)
@rule(aten.transpose_.default, aten.swapaxes.default, aten.swapdims.default, at_zero=keeps_zero)
def transpose(ctx: Context, self: Value, **arguments: Any) -> Value:
    a = dim_index(arguments.get("dim0", arguments.get("axis0", 0)), self.ndim)
    b = dim_index(arguments.get("dim1", arguments.get("axis1", 0)), self.ndim)
    order = list(range(self.ndim))
    order[a], order[b] = order[b], order[a]
    return permuted(self, order)


def _last_two_swapped(view: fx.Node, dim: int) -> int:
    ndim = int(view.meta["val"].ndim)
    return {ndim - 1: ndim - 2, ndim - 2: ndim - 1}.get(dim, dim)


@rule(aten.t.default, at_zero=keeps_zero, view=_transposed)
@rule(aten.t_.default, aten.numpy_T.default, at_zero=keeps_zero)
@rule(aten.mT.default, aten.mH.default, at_zero=keeps_zero, view=_last_two_swapped)
@rule(aten.adjoint.default, aten.matrix_H.default, at_zero=keeps_zero, view=_last_two_swapped)
def reverse(ctx: Context, self: Value, **_: Any) -> Value:
    order = list(range(self.ndim))
    if ctx.operator == "numpy_T":
        return permuted(self, order[::-1])
    return permuted(self, [*order[:-2], *order[-2:][::-1]])


@rule(aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist, at_zero=keeps_zero)
def movedim(ctx: Context, self: Value, source: Any, destination: Any, **_: Any) -> Value:
    moved = dim_indices(source, self.ndim)
    targets = dim_indices(destination, self.ndim)
    rest = iter(d for d in range(self.ndim) if d not in moved)
    place = dict(zip(targets, moved, strict=True))
    return permuted(self, [place[d] if d in place else next(rest) for d in range(self.ndim)])


@rule(aten.expand.default, aten.broadcast_to.default, at_zero=keeps_zero)
def expand(ctx: Context, self: Value, **_: Any) -> Value:
    return _expand(ctx, self, ctx.out_sizes())


@rule(aten.expand_as.default, at_zero=keeps_zero)
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
