"""Pooling, interpolation and other operators on spatial dimensions; channels pass through them."""

from __future__ import annotations

from typing import Any

import torch

from sdp_compile.structure import axes, views
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators.at_zero import keeps_zero
from sdp_compile.structure.operators.context import Context, Value
from sdp_compile.structure.operators.table import rule

aten = torch.ops.aten


def _first(arguments: dict[str, Any]) -> Value:
    value: Value = arguments["self"] if "self" in arguments else arguments["input"]
    return value


def _spatial(ctx: Context) -> range:
    """Returns the last one, two or three dimensions, as the operator's name says."""
    return range(-next(number for number in (1, 2, 3) if f"{number}d" in ctx.operator), 0)


@rule(
    aten.avg_pool1d,
    aten.avg_pool2d,
    aten.avg_pool3d,
    aten.max_pool1d,
    aten.max_pool2d,
    aten.max_pool3d,
    at_zero=keeps_zero,
)
@rule(aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d, at_zero=keeps_zero)
@rule(aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d, at_zero=keeps_zero)
@rule(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d, at_zero=keeps_zero)
@rule(
    aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d, at_zero=keeps_zero
)
@rule(
    aten.upsample_linear1d,
    aten.upsample_bilinear2d,
    aten.upsample_bicubic2d,
    aten.upsample_trilinear3d,
    at_zero=keeps_zero,
)
@rule(aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa, at_zero=keeps_zero)
@rule(aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d, at_zero=keeps_zero)
@rule(aten.replication_pad1d, aten.replication_pad2d, aten.replication_pad3d, at_zero=keeps_zero)
def spatial(ctx: Context, **arguments: Any) -> Value:
    return ctx.within(_first(arguments), _spatial(ctx))


@rule(aten.max_pool1d_with_indices, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices, at_zero=keeps_zero)
@rule(aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d, at_zero=keeps_zero)
def with_positions(ctx: Context, **arguments: Any) -> list[Value]:
    value = _first(arguments)
    return [ctx.within(value, _spatial(ctx)), ctx.within(value, _spatial(ctx), zero=False)]


@rule(aten.grid_sampler.default, aten.grid_sampler_2d.default, aten.grid_sampler_3d.default, at_zero=keeps_zero)
def grid_sampler(ctx: Context, input: Value, grid: Value, **_: Any) -> Value:
    ctx.unify(input.dims[0], grid.dims[0])
    ctx.freeze(*grid.dims[1:])
    return ctx.within(input, range(2, input.ndim))


@rule(aten.im2col.default, at_zero=keeps_zero)
def im2col(ctx: Context, self: Value, **_: Any) -> Value:
    """(..., channels, height, width) becomes (..., channels x window, windows)."""
    sizes, channel = ctx.out_sizes(), self.ndim - 3
    ctx.freeze(*self.dims[channel + 1 :])
    window = axes.fresh(sizes[channel] // axes.size(self.dims[channel]), ctx.reason())
    dims = (*self.dims[:channel], (*self.dims[channel], *window), axes.fresh(sizes[-1], ctx.reason()))
    return Value(dims, (*map(self.is_zero, range(channel + 1)), False))


@rule(aten.col2im.default, at_zero=keeps_zero)
def col2im(ctx: Context, self: Value, **_: Any) -> Value:
    """The reverse of `im2col`; values at one position are added."""
    sizes, channel = ctx.out_sizes(), self.ndim - 2
    window = axes.size(self.dims[channel]) // sizes[channel]
    (channels, within), _sources = views.regroup([self.dims[channel]], [sizes[channel], window], ctx.reason())
    ctx.freeze(within, self.dims[-1])
    plane = (axes.fresh(length, ctx.reason()) for length in sizes[-2:])
    return Value((*self.dims[:channel], channels, *plane), (*map(self.is_zero, range(channel + 1)), False, False))


@rule(aten.pixel_shuffle.default, aten.pixel_unshuffle.default, at_zero=keeps_zero)
def pixel_shuffle(ctx: Context, self: Value, **arguments: Any) -> Value:
    sizes, channel = ctx.out_sizes(), self.ndim - 3
    ctx.freeze(*self.dims[channel + 1 :])
    channels: Dim
    if ctx.operator == "pixel_unshuffle":
        channels = (*self.dims[channel], *axes.fresh(int(arguments["downscale_factor"]) ** 2, ctx.reason()))
    else:
        factor = int(arguments["upscale_factor"])
        (channels, within), _sources = views.regroup(
            [self.dims[channel]], [sizes[channel], factor * factor], ctx.reason()
        )
        ctx.freeze(within)
    plane = (axes.fresh(length, ctx.reason()) for length in sizes[channel + 1 :])
    return Value((*self.dims[:channel], channels, *plane), (*map(self.is_zero, range(channel + 1)), False, False))


@rule(aten.channel_shuffle.default, aten.native_channel_shuffle.default, at_zero=keeps_zero)
def channel_shuffle(ctx: Context, self: Value, groups: Any, **_: Any) -> Value:
    """(groups x rest) channels become (rest x groups)."""
    length = axes.size(self.dims[1])
    (outer, inner), _sources = views.regroup([self.dims[1]], [int(groups), length // int(groups)], ctx.reason())
    ctx.resize("groups", None, outer)
    return Value((self.dims[0], (*inner, *outer), *self.dims[2:]), tuple(map(self.is_zero, range(self.ndim))))
