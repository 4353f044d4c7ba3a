"""Convolutions, plain and transposed, in groups and depthwise, with weights of any origin."""

from __future__ import annotations

from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators import Context, Value, rule

aten = torch.ops.aten

KERNEL = "the positions of a kernel are no units"


def _spatial(ctx: Context, count: int) -> tuple[Dim, ...]:
    sizes = ctx.out_sizes()
    return tuple(axes.fresh(length, ctx.reason()) for length in sizes[len(sizes) - count :])


def _grouped(ctx: Context, dim: Dim, groups: int) -> tuple[Dim, Dim]:
    (outer, inner), _ = axes.regroup([dim], [groups, axes.size(dim) // groups], ctx.reason())
    return outer, inner


@rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
@rule(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding)
def convolution(
    ctx: Context, input: Value, weight: Value, bias: Value | None = None, groups: int | None = 1, **_: Any
) -> Value:
    """The weight is (out channels, in channels / groups, ...): its first dimension carries the groups.

    With a weight computed per sample the number of groups is a symbol: the batch times the model's own groups.
    """
    channel = input.ndim - weight.ndim + 1
    rows, columns = weight.dims[:2]
    ctx.freeze(*weight.dims[2:], text=KERNEL)
    ctx.freeze(*input.dims[channel + 1 :])
    if groups is None:
        groups = axes.size(input.dims[channel]) // axes.size(columns)
    if groups == 1:
        ctx.unify(input.dims[channel], columns)
    else:
        group, _per_group = _grouped(ctx, rows, groups)
        ctx.unify(input.dims[channel], (*group, *columns))
        ctx.resize("groups", None, group)
    ctx.contract(columns, input.is_zero(channel), weight.is_zero(1))
    return _result(ctx, input, channel, rows, weight.is_zero(0), bias)


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def _transposed(
    ctx: Context, input: Value, weight: Value, bias: Value | None = None, groups: int | None = 1, **_: Any
) -> Value:
    """The weight is (in channels, out channels / groups, ...): its first dimension carries the groups."""
    channel = input.ndim - weight.ndim + 1
    ctx.freeze(*weight.dims[2:], text=KERNEL)
    ctx.freeze(*input.dims[channel + 1 :])
    inner_in, zero_out = weight.dims[0], weight.is_zero(1)
    if groups is None:
        groups = ctx.out_sizes()[channel] // axes.size(weight.dims[1])
    if groups == 1:
        ctx.unify(input.dims[channel], inner_in)
        ctx.contract(inner_in, input.is_zero(channel), weight.is_zero(0))
        out = weight.dims[1]
    else:
        group, per_group = _grouped(ctx, inner_in, groups)
        ctx.unify(input.dims[channel], (*group, *per_group))
        ctx.contract(per_group, input.is_zero(channel), weight.is_zero(0))
        out = (*group, *weight.dims[1])
        zero_out = zero_out and weight.is_zero(0)
        ctx.resize("groups", None, group)
    return _result(ctx, input, channel, out, zero_out, bias)


@rule(aten.convolution.default)
def general(ctx: Context, transposed: bool, **arguments: Any) -> Value:
    result: Value = (_transposed if transposed else convolution)(ctx, **arguments)
    return result


def _result(ctx: Context, input: Value, channel: int, out: Dim, zero: bool, bias: Value | None) -> Value:
    if bias is not None:
        ctx.unify(out, bias.dims[0])
        zero = zero and bias.is_zero(0)
    leading = tuple(bias is None and input.is_zero(d) for d in range(channel))
    spatial = _spatial(ctx, input.ndim - channel - 1)
    return Value((*input.dims[:channel], out, *spatial), (*leading, zero, *(False for _ in spatial)))
