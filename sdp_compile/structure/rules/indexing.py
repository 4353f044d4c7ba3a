"""Indexing by tensors: what is looked up by number stays whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.rules import Context, Value, dim_index, rule

aten = torch.ops.aten


@rule(aten.index.Tensor)
def index(ctx: Context, self: Value, indices: Sequence[Value | None], **_: Any) -> Value:
    tensors = [node for node in ctx.node.args[1] if isinstance(node, fx.Node)]  # type: ignore[union-attr]
    if any(node.meta["val"].dtype in (torch.bool, torch.uint8) for node in tensors):
        # A mask takes the place of as many dimensions as it has.
        ctx.freeze_values(self, *indices, text="index picks elements of it by a mask")
        return ctx.frozen()
    indexed = [d for d, value in enumerate(indices) if value is not None]
    ctx.freeze(*(self.dims[d] for d in indexed), text="index looks it up by number")
    ctx.freeze_values(*(value for value in indices if value is not None))
    kept = [(self.dims[d], self.is_zero(d)) for d in range(self.ndim) if d not in indexed]
    sizes = ctx.out_sizes()
    count = len(sizes) - len(kept)
    # Adjacent indices put the looked-up dimensions in their place, separated ones put them first.
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    start = indexed[0] if adjacent else 0
    new: list[tuple[Dim, bool]] = [(axes.fresh(length, ctx.reason()), False) for length in sizes[start : start + count]]
    result = [*kept[:start], *new, *kept[start:]]
    return Value(tuple(dim for dim, _ in result), tuple(zero for _, zero in result))


@rule(aten.index_select.default)
def index_select(ctx: Context, self: Value, dim: int, index: Value, **_: Any) -> Value:
    dim = dim_index(dim, self.ndim)
    ctx.freeze(self.dims[dim], text="index_select looks it up by number")
    new = axes.fresh(ctx.out_sizes()[dim], ctx.reason())
    zero = [self.is_zero(d) and d != dim for d in range(self.ndim)]
    return Value((*self.dims[:dim], new, *self.dims[dim + 1 :]), tuple(zero))
