"""Batch, layer, RMS, group and instance normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.rules import Context, Value, rule

aten = torch.ops.aten


def _affine_zero(weight: Value | None, bias: Value | None) -> bool:
    """An affine norm is 0 at a missing unit if both its parameters are; their statistics do not matter."""
    return weight is not None and weight.is_zero(0) and (bias is None or bias.is_zero(0))


@rule(aten.batch_norm.default, aten.instance_norm.default)
def batch_norm(
    ctx: Context,
    input: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    **_: Any,
) -> Value:
    channel = 1
    for other in (weight, bias, running_mean, running_var):
        if other is not None:
            ctx.unify(input.dims[channel], other.dims[0])
    ctx.freeze(*(dim for d, dim in enumerate(input.dims) if d != channel), text="statistics are taken over it")
    zero = [False] * input.ndim
    zero[channel] = _affine_zero(weight, bias)
    return Value(input.dims, tuple(zero))


@rule(aten.layer_norm.default, aten.rms_norm.default)
def layer_norm(
    ctx: Context,
    input: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    **_: Any,
) -> Value:
    leading = input.ndim - len(normalized_shape)
    ctx.freeze(*input.dims[leading:])
    ctx.freeze_values(weight, bias)
    zero = [d < leading and bias is None and input.is_zero(d) for d in range(input.ndim)]
    return Value(input.dims, tuple(zero))


@rule(aten.group_norm.default)
def group_norm(
    ctx: Context, input: Value, num_groups: int, weight: Value | None = None, bias: Value | None = None, **_: Any
) -> Value:
    channels = input.dims[1]
    (groups, per_group), _sources = axes.regroup(
        [channels], [num_groups, axes.size(channels) // num_groups], ctx.reason()
    )
    for other in (weight, bias):
        if other is not None:
            ctx.unify(channels, other.dims[0])
    ctx.freeze(per_group, *input.dims[2:])
    ctx.resize("num_groups", None, groups)
    zero = [bias is None and input.is_zero(0), _affine_zero(weight, bias), *([False] * (input.ndim - 2))]
    return Value(input.dims, tuple(zero))
