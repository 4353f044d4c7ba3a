"""Convolutions, plain and transposed, in groups and depthwise, with weights of any origin."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import fx

from sdp_compile.ir.schema import bind, operator_name, tensor_arguments
from sdp_compile.ops import narrow
from sdp_compile.structure import axes, views
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators.at_zero import affine
from sdp_compile.structure.operators.context import Context, Value
from sdp_compile.structure.operators.parts import Channels, NarrowCall, Split
from sdp_compile.structure.operators.table import Contraction, Sizes, Work, rule

aten = torch.ops.aten

KERNEL = "the positions of a kernel are not units"

DIVIDED = "it is divided into groups that have no boundary in common with an earlier division"


def _spatial(ctx: Context, count: int) -> tuple[Dim, ...]:
    sizes = ctx.out_sizes()
    return tuple(axes.fresh(length, ctx.reason()) for length in sizes[len(sizes) - count :])


def _grouped(ctx: Context, dim: Dim, groups: int) -> tuple[Dim, Dim]:
    (outer, inner), _ = views.regroup([dim], [groups, axes.size(dim) // groups], ctx.reason())
    return outer, inner


def _contractions(node: fx.Node) -> list[Contraction]:
    input, weight = tensor_arguments(node)[:2]
    return [Contraction(input, weight, input.meta["val"].ndim - weight.meta["val"].ndim + 1)]


def _work(node: fx.Node, sizes: Sizes) -> list[Work]:
    """Each element of the result sums over the kernel and the input channels of its group."""
    weight = tensor_arguments(node)[1]
    return [Work(2.0 * prod(sizes(weight)[1:]) * prod(sizes(node)), (weight,))]


def _transposed_work(node: fx.Node, sizes: Sizes) -> list[Work]:
    """Each element of the input goes to the kernel's positions and the output channels of its group."""
    input, weight = tensor_arguments(node)[:2]
    return [Work(2.0 * prod(sizes(weight)[1:]) * prod(sizes(input)), (weight,))]


def _narrow(node: fx.Node, weight: fx.Node, split: Split) -> NarrowCall | None:
    arguments = bind(node)
    x, value = arguments["input"], weight.meta["val"]
    found = _seen_by(node, arguments, value, split.dim, split.channels) if arguments["weight"] is weight else None
    if found is None or x.meta["val"].ndim != value.ndim:
        return None
    geometry, seen = found
    args = (x, split.owned, split.rest, arguments["bias"], split.dim, split.runs, geometry, arguments["groups"], seen)
    return narrow.convolution, args


@rule(
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
    at_zero=affine,
    flops=_work,
    contractions=_contractions,
    narrow=_narrow,
)
def convolution(
    ctx: Context, input: Value, weight: Value, bias: Value | None = None, groups: int | None = 1, **_: Any
) -> Value:
    """The weight is (out channels, in channels / groups, ...): its first dimension carries the groups.

    When a weight is computed for each sample, ``groups`` is a symbol: the batch times the model's own groups.
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
        channels = input.dims[channel]
        if not axes.share(channels, (*group, *columns)):
            channels = ctx.widened("input", input, channel, DIVIDED)
        ctx.unify(channels, (*group, *columns))
        ctx.resize("groups", None, group)
    ctx.contract(columns, input.is_zero(channel), weight.is_zero(1))
    return _result(ctx, input, channel, rows, weight.is_zero(0), bias)


@rule(
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
    at_zero=affine,
    flops=_transposed_work,
    contractions=_contractions,
    narrow=_narrow,
)
def transposed_convolution(
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
        channels = input.dims[channel]
        if not axes.share(channels, (*group, *per_group)):
            channels = ctx.widened("input", input, channel, DIVIDED)
        ctx.unify(channels, (*group, *per_group))
        ctx.contract(per_group, input.is_zero(channel), weight.is_zero(0))
        out = (*group, *weight.dims[1])
        zero_out = zero_out and weight.is_zero(0)
        ctx.resize("groups", None, group)
    return _result(ctx, input, channel, out, zero_out, bias)


@rule(aten.convolution.default, at_zero=affine)
def general(ctx: Context, transposed: bool, **arguments: Any) -> Value:
    result: Value = (transposed_convolution if transposed else convolution)(ctx, **arguments)
    return result


def _result(ctx: Context, input: Value, channel: int, out: Dim, zero: bool, bias: Value | None) -> Value:
    if bias is not None:
        ctx.unify(out, bias.dims[0])
        zero = zero and bias.is_zero(0)
    leading = tuple(bias is None and input.is_zero(d) for d in range(channel))
    spatial = _spatial(ctx, input.ndim - channel - 1)
    return Value((*input.dims[:channel], out, *spatial), (*leading, zero, *(False for _ in spatial)))


def _seen_by(
    node: fx.Node, arguments: Mapping[str, Any], weight: torch.Tensor, dim: int, channels: Channels
) -> tuple[narrow.Geometry, narrow.Seen] | None:
    """Returns the geometry of a convolution, and which channels the part of its weight owned along ``dim`` sees.

    A weight is (out channels, in channels / groups, ...), transposed (in channels, out channels / groups, ...). None
    where there is no narrow form.
    """
    transposed, groups = "transpose" in operator_name(node), arguments["groups"]
    geometry = _geometry(arguments, weight, transposed)
    if geometry is None or not isinstance(groups, int) or dim > 1:
        return None
    if groups == 1:
        is_output = (dim == 0) != transposed
        return geometry, ((None, channels.runs, 1) if is_output else (channels.runs, None, 1))
    if transposed:
        return None
    flags = channels.flags()
    if dim == 1:  # the same inputs of each group
        return geometry, (Channels.of(flags * groups).runs, None, groups)
    per_group = len(flags) // groups
    counts = [sum(flags[start : start + per_group]) for start in range(0, len(flags), per_group)]
    if set(counts) == {0, per_group}:  # whole groups, with their inputs
        inputs = [count > 0 for count in counts for _ in range(weight.shape[1])]
        return geometry, (Channels.of(inputs).runs, channels.runs, sum(count > 0 for count in counts))
    return (geometry, (None, channels.runs, groups)) if len(set(counts)) == 1 else None


def _geometry(arguments: Mapping[str, Any], weight: torch.Tensor, transposed: bool) -> narrow.Geometry | None:
    """Returns the arguments as ``aten.convolution`` takes them; None for padding that differs between both sides."""
    spatial = weight.ndim - 2

    def sizes(name: str) -> list[int]:
        values = list(arguments.get(name, [0]))
        return values * spatial if len(values) == 1 else values

    dilation = sizes("dilation")
    if arguments["padding"] == "same":
        total = [step * (size - 1) for step, size in zip(dilation, weight.shape[2:], strict=True)]
        if any(pad % 2 for pad in total):
            return None
        padding = [pad // 2 for pad in total]
    else:
        padding = [0] * spatial if arguments["padding"] == "valid" else sizes("padding")
    return sizes("stride"), padding, dilation, transposed, sizes("output_padding")
