"""Convolutions and pooling."""

from __future__ import annotations

from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.rules import Context, Value, rule

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
    ctx: Context, input: Value, weight: Value, bias: Value | None = None, groups: int = 1, **_: Any
) -> Value:
    """The weight is (out channels, in channels / groups, ...): its first dimension carries the groups."""
    channel = input.ndim - weight.ndim + 1
    rows, columns = weight.dims[:2]
    ctx.freeze(*weight.dims[2:], text=KERNEL)
    ctx.freeze(*input.dims[channel + 1 :])
    if groups == 1:
        ctx.unify(input.dims[channel], columns)
    else:
        group, _per_group = _grouped(ctx, rows, groups)
        ctx.unify(input.dims[channel], (*group, *columns))
        ctx.resize("groups", None, group)
    ctx.contract(columns, input.is_zero(channel), weight.is_zero(1))
    return _result(ctx, input, channel, rows, weight.is_zero(0), bias)


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def transposed(
    ctx: Context, input: Value, weight: Value, bias: Value | None = None, groups: int = 1, **_: Any
) -> Value:
    """The weight is (in channels, out channels / groups, ...): its first dimension carries the groups."""
    channel = input.ndim - weight.ndim + 1
    ctx.freeze(*weight.dims[2:], text=KERNEL)
    ctx.freeze(*input.dims[channel + 1 :])
    inner_in, zero_out = weight.dims[0], weight.is_zero(1)
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


def _result(ctx: Context, input: Value, channel: int, out: Dim, zero: bool, bias: Value | None) -> Value:
    if bias is not None:
        ctx.unify(out, bias.dims[0])
        zero = zero and bias.is_zero(0)
    leading = tuple(bias is None and input.is_zero(d) for d in range(channel))
    spatial = _spatial(ctx, input.ndim - channel - 1)
    return Value((*input.dims[:channel], out, *spatial), (*leading, zero, *(False for _ in spatial)))


def _pool(ctx: Context, input: Value, count: int) -> Value:
    keep = input.ndim - count
    ctx.freeze(*input.dims[keep:])
    spatial = _spatial(ctx, count)
    return Value((*input.dims[:keep], *spatial), (*(input.is_zero(d) for d in range(keep)), *(False for _ in spatial)))


@rule(aten.max_pool1d.default, aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default)
def pool1d(ctx: Context, self: Value, **_: Any) -> Value:
    return _pool(ctx, self, 1)


@rule(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default)
@rule(aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec)
@rule(aten.upsample_nearest2d.default, aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default)
def pool2d(ctx: Context, **arguments: Any) -> Value:
    return _pool(ctx, arguments["self"] if "self" in arguments else arguments["input"], 2)


@rule(aten.max_pool3d.default, aten.avg_pool3d.default, aten.adaptive_avg_pool3d.default)
def pool3d(ctx: Context, self: Value, **_: Any) -> Value:
    return _pool(ctx, self, 3)
