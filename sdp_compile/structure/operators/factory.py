"""Tensors made from sizes: constant fills follow a cut, values that depend on the position do not."""

from __future__ import annotations

from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.operators.at_zero import makes_zeros
from sdp_compile.structure.operators.context import Context, Value
from sdp_compile.structure.operators.table import lookup, rule

aten = torch.ops.aten


@rule(
    aten.ones.default,
    aten.full.default,
    aten.empty.memory_format,
    aten.new_ones.default,
    aten.new_full.default,
    aten.new_empty.default,
    aten.rand.default,
    aten.randn.default,
    aten.randint.default,
    aten.randint.low,
)
@rule(aten.zeros.default, aten.new_zeros.default, at_zero=makes_zeros)
def filled(ctx: Context, size: Any, **_: Any) -> Value:
    sizes = ctx.out_sizes()
    dims = tuple(axes.fresh(length) for length in sizes)
    for position, dim in enumerate(dims):
        ctx.resize("size", position, dim)
    return Value(dims, (_is_zeros(ctx),) * len(dims))


@rule(
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
    aten.rand_like.default,
    aten.randn_like.default,
    aten.randint_like.default,
    aten.randint_like.low_dtype,
)
@rule(aten.zeros_like.default, at_zero=makes_zeros)
def like(ctx: Context, self: Value, **_: Any) -> Value:
    return Value(self.dims, (_is_zeros(ctx),) * self.ndim)


def _is_zeros(ctx: Context) -> bool:
    return lookup(ctx.node.target).at_zero is makes_zeros


@rule(aten.scalar_tensor.default)
def scalar(ctx: Context, **_: Any) -> Value:
    return Value((), ())


@rule(aten.arange, aten.linspace, aten.logspace, aten.eye, aten.tril_indices, aten.triu_indices, aten.randperm)
@rule(aten.hann_window, aten.hamming_window)
def positions(ctx: Context, **_: Any) -> Value:
    """Values that depend on the position: on a slice, they would start again from the first one."""
    return ctx.frozen()
