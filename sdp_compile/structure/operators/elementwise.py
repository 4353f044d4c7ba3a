"""Elementwise operators: aligned dimensions are the same axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.ir.schema import functional_name, functional_variant, written_argument
from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators.at_zero import (
    Call,
    Outcome,
    both_zero,
    either_zero,
    keeps_zero,
    makes_zeros,
    product_and_sum,
    undefined,
    undefined_if_any,
    zero_if,
)
from sdp_compile.structure.operators.context import Context, Value
from sdp_compile.structure.operators.table import ALIASES, declare, fallback_rule, lookup, rule

aten = torch.ops.aten

UNTAGGED = frozenset(
    {
        *ALIASES.values(),
        *"eq exp2 greater greater_equal isclose less less_equal not_equal special_exp2 special_expit".split(),
    }
)
"""Elementwise operators of which some variant lacks `torch.Tag.pointwise`."""

declare(
    *"abs asin asinh atan atanh ceil celu clone contiguous conj_physical deg2rad detach dropout elu erf erfinv expm1 "
    "isinf isnan "
    "feature_dropout floor frac gelu hardshrink hardswish leaky_relu lift_fresh lift_fresh_copy log1p mish nan_to_num "
    "neg pin_memory positive rad2deg relu relu6 round rrelu selu sgn sign silu sin sinh softshrink square tan tanh "
    "trunc type_as alias to _to_copy".split(),
    at_zero=keeps_zero,
)
declare(
    *"acosh digamma lgamma log log10 log2 mvlgamma polygamma reciprocal rsqrt special_bessel_y0 special_bessel_y1 "
    "special_entr special_modified_bessel_k0 special_modified_bessel_k1 special_ndtri "
    "special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 sqrt".split(),
    at_zero=lambda call: Outcome.UNDEFINED if call.zero("self", "x") else Outcome.FINITE,
)
declare("mul", at_zero=either_zero)
declare(*"add sub rsub maximum minimum fmax fmin lerp ne gt lt logical_or logical_xor".split(), at_zero=both_zero)
declare("zero", at_zero=makes_zeros)
declare("copy", at_zero=lambda call: zero_if(call.zero("src")))
declare("fill", at_zero=lambda call: zero_if(call.zero("value")))
declare("masked_fill", at_zero=lambda call: zero_if(call.zero("self") and call.zero("value")))
declare("where", at_zero=lambda call: zero_if(call.zero("self") and call.zero("other")))
declare("addcmul", at_zero=product_and_sum)


def _hypotenuse(call: Call) -> Outcome:
    return Outcome.UNDEFINED if all(call.first(2)) else Outcome.FINITE


def _quotient(call: Call) -> Outcome:
    dividend, divisor = call.first(2)
    return Outcome.UNDEFINED if divisor else zero_if(dividend)


def _quotient_and_sum(call: Call) -> Outcome:
    return Outcome.UNDEFINED if call.zero("tensor2") else zero_if(call.zero("self") and call.zero("tensor1"))


def _logit(call: Call) -> Outcome:
    eps = call.arguments["eps"]
    return Outcome.FINITE if isinstance(eps, int | float) and eps > 0 else undefined(call)  # clamped to [eps, 1 - eps]


def _power(call: Call) -> Outcome:
    if not call.zero("self"):
        return Outcome.FINITE
    exponent = call.arguments["exponent"]
    if not isinstance(exponent, int | float):  # even one of 0: the gradient of 0 ** 0 is NaN for complex numbers
        return Outcome.UNDEFINED
    return Outcome.ZERO if exponent >= 1 else Outcome.FINITE if exponent == 0 else Outcome.UNDEFINED


def _threshold(call: Call) -> Outcome:
    threshold = call.arguments["threshold"]
    below = isinstance(threshold, int | float) and threshold < 0
    return zero_if(call.zero("self") and (below or call.zero("value")))


def _clamped(call: Call) -> Outcome:
    low = call.arguments.get("min", call.arguments.get("min_val"))
    high = call.arguments.get("max", call.arguments.get("max_val"))
    numbers = all(bound is None or isinstance(bound, int | float) for bound in (low, high))
    return zero_if(call.zero("self") and numbers and (low or 0) <= 0 <= (high or 0))


declare("atan2", at_zero=lambda call: Outcome.FINITE)  # of two zeros 0 or pi: their signs decide
declare("hypot", at_zero=_hypotenuse)
declare("div", "floor_divide", "fmod", "remainder", "xlogy", at_zero=_quotient)
declare("addcdiv", at_zero=_quotient_and_sum)
declare("logit", at_zero=_logit)
declare("igamma", "igammac", "logit_backward", "special_zeta", at_zero=undefined_if_any)
declare("pow", "float_power", at_zero=_power)
declare("threshold", at_zero=_threshold)
declare("clamp", "clamp_min", "clamp_max", "hardtanh", at_zero=_clamped)


def broadcast(ctx: Context, operands: Sequence[Value], ndim: int | None = None) -> tuple[Dim, ...]:
    """Unifies the aligned dimensions of the operands and returns the dimensions of the result."""
    ndim = max(value.ndim for value in operands) if ndim is None else ndim
    result: list[Dim] = []
    for position in range(-ndim, 0):
        present = [v.dims[position] for v in operands if v.ndim >= -position and axes.size(v.dims[position]) != 1]
        for other in present[1:]:
            ctx.unify(present[0], other)
        result.append(present[0] if present else ())
    return tuple(result)


def aligned_zero(operand: Value, position: int) -> bool:
    """Returns whether an operand is 0 at missing units of the result's dimension ``position`` (negative)."""
    return operand.ndim >= -position and axes.size(operand.dims[position]) != 1 and operand.is_zero(position)


def is_pointwise(target: Any) -> bool:
    """Returns whether an overload computes each element of its result from the aligned elements of its arguments."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return False
    name = functional_name(target._schema.name.removeprefix("aten::"))
    functional = functional_variant(target)  # in-place variants carry the tag only in part
    tagged = any(torch.Tag.pointwise in one.tags for one in (target, functional) if one is not None)
    return (tagged or name in UNTAGGED or name in ALIASES) and len(target._schema.returns) == 1


@fallback_rule(is_pointwise)
def elementwise(ctx: Context, **arguments: Any) -> Value:
    """The rule of every operator that `torch.Tag.pointwise` marks."""
    operands = [value for value in arguments.values() if isinstance(value, Value)]
    if not operands:
        return ctx.frozen()
    dims = broadcast(ctx, operands)
    zero = tuple(_zero(ctx, arguments, dims, position) for position in range(-len(dims), 0))
    written = written_argument(ctx.node.target)
    if written is not None:
        return ctx.writes(arguments[written], zero)
    if ctx.operator in {"detach", "alias", "to", "contiguous", "type_as"}:
        return Value(dims, zero, operands[0].storage)
    return Value(dims, zero)


def _zero(ctx: Context, arguments: dict[str, Any], dims: Sequence[Dim], position: int) -> bool:
    """Whether the result is 0 at missing units of a dimension; freezes it where the result would not be finite."""
    at_zero = lookup(ctx.node.target).at_zero

    def is_zero(value: Any) -> bool:
        if isinstance(value, Value):
            return aligned_zero(value, position)
        return isinstance(value, int | float | complex) and value == 0

    outcome = Outcome.FINITE if at_zero is None else at_zero(Call(arguments, is_zero))
    if outcome is Outcome.UNDEFINED:
        ctx.freeze(dims[position], text=f"{ctx.operator} is not finite where a missing unit is 0")
    return outcome is Outcome.ZERO


def _same(view: Any, dim: int) -> int:
    return dim


@rule(aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.feature_dropout_.default)
@rule(aten.alpha_dropout.default, aten.alpha_dropout_.default)
@rule(aten.feature_alpha_dropout.default, aten.feature_alpha_dropout_.default)
@rule(aten.contiguous.default, aten.clone.default, aten.detach.default, aten.detach_.default, aten.alias.default)
@rule(aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.type_as.default, aten.pin_memory.default)
@rule(aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten._to_copy.default, view=_same)
@rule(aten.bernoulli.default, aten.bernoulli.p, aten.bernoulli_.float, aten.bernoulli_.Tensor, aten.normal_.default)
@rule(aten.uniform_.default, aten.exponential_.default, aten.random_)
@rule(aten.copy_.default, aten.zero_.default, aten.fill_.Scalar)
@rule(aten.hardswish.default, aten.hardswish_.default, aten.log_sigmoid.default)
@rule(aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.where.ScalarOther, aten.where.ScalarSelf)
@rule(aten.where.Scalar, aten.rsub.Tensor, aten.floor_divide, aten.isin.Tensor_Scalar)
@rule(aten.__and__.Tensor, aten.__or__.Tensor, aten.__and__.Scalar, aten.__or__.Scalar)
def same_shape(ctx: Context, **arguments: Any) -> Value:
    """The rule of elementwise operators without the tag; ``to`` and ``type_as`` read only the dtype of ``other``."""
    if ctx.operator in {"to", "type_as"}:
        arguments.pop("other", None)
    return elementwise(ctx, **arguments)


@rule(aten.prelu.default, at_zero=keeps_zero)
def prelu(ctx: Context, self: Value, weight: Value, **_: Any) -> Value:
    """One slope for all channels, or one for each."""
    if axes.size(weight.dims[0] if weight.ndim else ()) != 1:
        ctx.unify(self.dims[1 if self.ndim > 1 else 0], weight.dims[0])
    return Value(self.dims, tuple(self.is_zero(d) for d in range(self.ndim)))


@rule(aten.glu.default, at_zero=keeps_zero)
def glu(ctx: Context, self: Value, dim: int, **_: Any) -> Value:
    """The first half of a dimension times the sigmoid of the second."""
    dim = dim % self.ndim
    half = axes.size(self.dims[dim]) // 2
    first, second = axes.split(self.dims[dim], [half, half], ctx.reason())
    ctx.unify(first, second)
    dims = (*self.dims[:dim], first, *self.dims[dim + 1 :])
    return Value(dims, tuple(self.is_zero(d) for d in range(self.ndim)))


@rule(aten.native_dropout.default, at_zero=keeps_zero)
def native_dropout(ctx: Context, input: Value, **_: Any) -> list[Value]:
    """The result, and the mask."""
    return [
        Value(input.dims, tuple(map(input.is_zero, range(input.ndim)))),
        Value(input.dims, (False,) * input.ndim),
    ]
