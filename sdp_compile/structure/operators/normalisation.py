"""Batch, layer, RMS, group and instance normalisation, and weight normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from sdp_compile.ir.schema import bind
from sdp_compile.ops import narrow
from sdp_compile.ops.of_full import standardise_of_full
from sdp_compile.structure import axes, views
from sdp_compile.structure.operators.at_zero import Call, Outcome, undefined, zero_if
from sdp_compile.structure.operators.context import Context, Value, dim_index
from sdp_compile.structure.operators.parts import NarrowCall, Split
from sdp_compile.structure.operators.table import declare, rule

aten = torch.ops.aten


def _affine_zero(weight: Value | None, bias: Value | None) -> bool:
    """Whether scale and shift make a normalisation 0 at missing units, whatever the statistics."""
    return weight is not None and weight.is_zero(0) and (bias is None or bias.is_zero(0))


def _check_eps(ctx: Context, eps: float | None, input: Value) -> None:
    """Freezes an input that is divided by its deviation alone: that is 0 where a unit is missing."""
    if eps == 0:
        ctx.freeze_values(input, text=f"with eps=0, {ctx.operator} divides a missing unit by its deviation, which is 0")


def _by_statistics(call: Call) -> Outcome:
    # An input of 0 is not enough: running statistics shift it.
    return zero_if(call.zero("weight") and call.absent("bias"))


def _by_sample(call: Call) -> Outcome:
    if call.zero("input") and call.zero("eps"):
        return Outcome.UNDEFINED  # 0 / 0; batch norms take that for 0
    return zero_if(call.zero("weight", "input") and call.absent("bias"))


declare("native_batch_norm", at_zero=_by_statistics)
declare("native_layer_norm", "native_group_norm", at_zero=_by_sample)


@rule(aten.batch_norm.default, aten.instance_norm.default, at_zero=_by_statistics)
def batch_norm(
    ctx: Context,
    input: Value,
    weight: Value | None = None,
    bias: Value | None = None,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    **arguments: Any,
) -> Value:
    """Weight standardisation calls it on weights; normalising zeros by their own statistics gives zeros."""
    channel = 1
    own_statistics = bool(arguments.get("training") or arguments.get("use_input_stats"))
    for other in (weight, bias, running_mean, running_var):
        if other is not None:
            ctx.unify(input.dims[channel], other.dims[0])
    others = [d for d in range(input.ndim) if d != channel]
    cut: list[int] = []
    if own_statistics and ctx.operator == "batch_norm" and all(v is None for v in (weight, bias, running_mean)):
        cut = [
            d for d in others if input.is_zero(d) and any(root.frozen is None for root in axes.expand(input.dims[d]))
        ]
    ctx.freeze(*(input.dims[d] for d in others if d not in cut), text="statistics are taken over it")
    if cut:
        ctx.become(standardise_of_full)
        ctx.pin("eps", arguments["eps"])
        ctx.pin("full", [axes.size(input.dims[d]) for d in cut])
        for position, d in enumerate(cut):
            ctx.resize("kept", position, input.dims[d])
    zero = [False] * input.ndim
    unshifted = bias is None or bias.is_zero(0)
    zero[channel] = _affine_zero(weight, bias) or (own_statistics and unshifted and input.is_zero(channel))
    return Value(input.dims, tuple(zero))


def _narrow_layer_norm(node: fx.Node, weight: fx.Node, split: Split) -> NarrowCall | None:
    arguments = bind(node)
    if arguments["weight"] is not weight or len(arguments["normalized_shape"]) != 1:
        return None
    args = (arguments["input"], split.owned, split.rest, arguments["bias"], arguments["eps"], split.runs)
    return narrow.layer_norm, args


@rule(aten.layer_norm.default, at_zero=_by_sample, narrow=_narrow_layer_norm)
@rule(aten.rms_norm.default, at_zero=_by_sample)
def layer_norm(
    ctx: Context,
    input: Value,
    normalized_shape: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float | None = None,
    **_: Any,
) -> Value:
    _check_eps(ctx, eps, input)
    leading = input.ndim - len(normalized_shape)
    whole = [ctx.widened("input", input, d) for d in range(leading, input.ndim)]
    ctx.freeze_values(weight, bias)
    zero = [d < leading and bias is None and input.is_zero(d) for d in range(input.ndim)]
    return Value((*input.dims[:leading], *whole), tuple(zero))


@rule(aten.group_norm.default, at_zero=_by_sample)
def group_norm(
    ctx: Context,
    input: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> Value:
    _check_eps(ctx, eps, input)
    channels = input.dims[1]
    if not axes.share(channels, axes.fresh(num_groups)):
        channels = ctx.widened("input", input, 1)
    (groups, per_group), _sources = views.regroup(
        [channels], [num_groups, axes.size(channels) // num_groups], ctx.reason()
    )
    for other in (weight, bias):
        if other is not None:
            ctx.unify(channels, other.dims[0])
    ctx.freeze(per_group, *input.dims[2:])
    ctx.resize("num_groups", None, groups)
    zero = [bias is None and input.is_zero(0), _affine_zero(weight, bias), *([False] * (input.ndim - 2))]
    return Value((input.dims[0], channels, *input.dims[2:]), tuple(zero))


@rule(aten._weight_norm.default, at_zero=undefined)
def weight_norm(ctx: Context, v: Value, g: Value, dim: int = 0) -> Value:
    """Computes ``g * v / norm(v)`` with norms over all dimensions but ``dim``.

    A missing unit of ``v`` would give 0 / 0, so all workers hold ``v`` whole along ``dim``. A missing unit of ``g``
    gives 0, whatever ``v`` is.
    """
    dim = dim_index(dim, v.ndim)
    ctx.narrowed("v", v, dim, g.dims[dim], "_weight_norm divides a missing unit, which is 0, by its norm")
    for d in range(v.ndim):
        if not v.is_zero(d):
            ctx.freeze(v.dims[d])
    dims = (*v.dims[:dim], g.dims[dim], *v.dims[dim + 1 :])
    return Value(dims, tuple(g.is_zero(d) if d == dim else v.is_zero(d) for d in range(v.ndim)))
