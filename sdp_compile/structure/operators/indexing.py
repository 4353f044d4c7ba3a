"""Indexing: indexed dimensions stay whole, all others pass through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from sdp_compile.ops import narrow
from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators.at_zero import keeps_zero
from sdp_compile.structure.operators.context import Context, Value, dim_index
from sdp_compile.structure.operators.parts import NarrowCall, Split
from sdp_compile.structure.operators.table import rule

aten = torch.ops.aten


def looked_up(ctx: Context, self: Value, indices: Sequence[Value | None], reads: bool = False) -> list[int | None]:
    """Returns for each dimension of ``self[indices]`` the dimension of ``self`` that passes through, None if indexed.

    A mask replaces as many dimensions as it has by one. An operator that only ``reads`` may find zeros at units that a
    worker lacks.
    """
    nodes: Sequence[Any] = ctx.node.args[1]  # type: ignore[assignment]
    indexed: list[int] = []
    new = position = 0
    for node, value in zip(nodes, indices, strict=True):
        mask = isinstance(node, fx.Node) and node.meta["val"].dtype in (torch.bool, torch.uint8)
        taken = value.ndim if value is not None and mask else 1
        if value is not None:
            indexed += range(position, position + taken)
            new = max(new, 1 if mask else value.ndim)
        position += taken
    for d in indexed:
        if reads:
            ctx.widened("self", self, d, f"{ctx.operator} looks it up by number")
        else:
            ctx.freeze(self.dims[d], text=f"{ctx.operator} looks it up by number")
    ctx.freeze_values(*indices)
    kept: list[int | None] = [d for d in range(self.ndim) if d not in indexed]
    # The dimensions of adjacent indices stay in place; those of separated ones come first.
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    start = indexed[0] if adjacent else 0
    return [*kept[:start], *[None] * new, *kept[start:]]


@rule(aten.index.Tensor, at_zero=keeps_zero)
def index(ctx: Context, self: Value, indices: Sequence[Value | None], **_: Any) -> Value:
    sources = looked_up(ctx, self, indices, reads=True)
    dims = [
        axes.fresh(length, ctx.reason()) if d is None else self.dims[d]
        for d, length in zip(sources, ctx.out_sizes(), strict=True)
    ]
    return Value(tuple(dims), tuple(d is not None and self.is_zero(d) for d in sources))


@rule(aten.index_select.default, at_zero=keeps_zero)
def index_select(ctx: Context, self: Value, dim: int, index: Value, **_: Any) -> Value:
    ctx.freeze_values(index)
    return ctx.within(self, [dim], argument="self")


@rule(aten.gather.default, at_zero=keeps_zero)
def gather(ctx: Context, self: Value, dim: int, index: Value, **_: Any) -> Value:
    """Looks up one value for each element of ``index``; if that is shorter than the tensor, neither is cut."""
    if not self.ndim:
        return self
    dim = dim_index(dim, self.ndim)
    ctx.widened("self", self, dim, "gather looks it up by number")
    for d in range(self.ndim):
        if d != dim:
            ctx.unify_equal(self.dims[d], index.dims[d])
    return Value(index.dims, tuple(d != dim and self.is_zero(d) for d in range(self.ndim)))


@rule(aten.take_along_dim.default, at_zero=keeps_zero)
def take_along_dim(ctx: Context, self: Value, indices: Value, dim: int | None = None, **_: Any) -> Value:
    if dim is None:
        ctx.freeze_values(self, indices)
        return ctx.frozen()
    dim = dim_index(dim, self.ndim)
    ctx.freeze(self.dims[dim], indices.dims[dim], text="take_along_dim looks it up by number")
    dims: list[Dim] = []
    for d in range(self.ndim):  # both are broadcast beside ``dim``
        if d != dim and axes.size(self.dims[d]) != 1 and axes.size(indices.dims[d]) != 1:
            ctx.unify(self.dims[d], indices.dims[d])
        dims.append(indices.dims[d] if d == dim or axes.size(self.dims[d]) == 1 else self.dims[d])
    zero = (d != dim and axes.size(self.dims[d]) != 1 and self.is_zero(d) for d in range(self.ndim))
    return Value(tuple(dims), tuple(zero))


def _narrow_embedding(node: fx.Node, weight: fx.Node, split: Split) -> NarrowCall | None:
    if split.dim != 1:
        return None
    halves = [
        node.graph.call_function(aten.embedding.default, (part, *node.args[1:]), dict(node.kwargs))
        for part in (split.owned, split.rest)
    ]
    return narrow.join, (*halves, -1, split.runs)


@rule(aten.embedding.default, at_zero=keeps_zero, narrow=_narrow_embedding)
def embedding(ctx: Context, weight: Value, indices: Value, **_: Any) -> Value:
    ctx.freeze(weight.dims[0], text="embedding looks rows up by number")
    return Value((*indices.dims, weight.dims[1]), (*(False for _ in indices.dims), weight.is_zero(1)))


@rule(aten.embedding_bag.default, aten.embedding_bag.padding_idx, aten._embedding_bag.default, at_zero=keeps_zero)
def embedding_bag(
    ctx: Context, weight: Value, indices: Value, offsets: Value, per_sample_weights: Value | None = None, **_: Any
) -> list[Value]:
    """Returns the sum, mean or maximum of the rows of each bag, and three tensors that only backward reads."""
    ctx.freeze(weight.dims[0], text="embedding_bag looks rows up by number")
    ctx.freeze_values(indices, offsets, per_sample_weights)
    sizes = [ctx.sizes_of(tensor) for tensor in ctx.node.meta["val"]]
    bags = axes.fresh(sizes[0][0], ctx.reason())
    return [Value((bags, weight.dims[1]), (False, weight.is_zero(1))), *map(ctx.frozen, sizes[1:])]
