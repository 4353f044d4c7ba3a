"""Elementwise operators: aligned dimensions are the same axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators import Context, Value, mutated_argument, rule

aten = torch.ops.aten

# f(0) == 0 with a finite gradient there.
KEEPS_ZERO = frozenset(
    "abs asin asinh atan atanh ceil clone contiguous detach elu erf expm1 floor gelu hardshrink hardswish "
    "leaky_relu log1p mish neg negative positive prelu relu relu6 round selu sgn sign silu sin sinh softshrink square "
    "tan tanh trunc celu rrelu _to_copy to alias lift_fresh lift_fresh_copy conj_physical type_as dropout "
    "feature_dropout nan_to_num erfinv deg2rad rad2deg frac pin_memory".split()
)
# f(0), or its gradient, is not finite: the masked oracle itself breaks down.
INFINITE_AT_ZERO = frozenset("log log2 log10 rsqrt reciprocal sqrt logit digamma lgamma acosh atan2 hypot".split())
# Other names of elementwise operators; these carry no tag of their own.
ALIASES = {
    **dict.fromkeys(("greater", "less", "greater_equal", "less_equal", "not_equal", "isclose"), "eq"),
    **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "tan2", "sinh", "tanh", "cosh")},
    **{f"special_{name}": name for name in ("erf", "erfinv", "expm1", "log1p", "round", "exp2", "expit", "logit")},
    "multiply": "mul",
    "divide": "div",
    "true_divide": "div",
    "subtract": "sub",
    "negative": "neg",
    "absolute": "abs",
    "fix": "trunc",
    "clip": "clamp",
}


def base_name(target: Any) -> str:
    """``aten.multiply_.Tensor`` -> ``mul``."""
    name = str(target).removeprefix("aten.").rsplit(".", 1)[0]
    name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    return ALIASES.get(name, name)


def broadcast(ctx: Context, operands: Sequence[Value], ndim: int | None = None) -> tuple[Dim, ...]:
    """Unify the aligned dimensions of the operands; the dimensions of the result."""
    ndim = max(value.ndim for value in operands) if ndim is None else ndim
    result: list[Dim] = []
    for position in range(-ndim, 0):
        present = [v.dims[position] for v in operands if v.ndim >= -position and axes.size(v.dims[position]) != 1]
        for other in present[1:]:
            ctx.unify(present[0], other)
        result.append(present[0] if present else ())
    return tuple(result)


def aligned_zero(operand: Value, position: int) -> bool:
    """Whether an operand is 0 at missing units of the result's dimension ``position`` (negative)."""
    return operand.ndim >= -position and axes.size(operand.dims[position]) != 1 and operand.is_zero(position)


def elementwise(ctx: Context, **arguments: Any) -> Value:
    """The rule of every operator that `torch.Tag.pointwise` marks."""
    operands = [value for value in arguments.values() if isinstance(value, Value)]
    for value in arguments.values():
        if isinstance(value, (list, tuple)):
            operands += [item for item in value if isinstance(item, Value)]
    if not operands:
        return ctx.frozen()
    dims = broadcast(ctx, operands)
    zero = tuple(_zero(ctx, arguments, operands, position) for position in range(-len(dims), 0))
    written = mutated_argument(ctx.node.target)
    if written is not None:
        return ctx.writes(arguments[written], zero)
    if base_name(ctx.node.target) in {"detach", "alias", "to", "contiguous", "type_as"}:
        return Value(dims, zero, operands[0].storage)
    return Value(dims, zero)


def _zero(ctx: Context, arguments: dict[str, Any], operands: Sequence[Value], position: int) -> bool:
    name = base_name(ctx.node.target)
    first = operands[0]
    zeros = [aligned_zero(value, position) for value in operands]
    if name in KEEPS_ZERO:
        return zeros[0]
    if name == "logit" and arguments.get("eps") is not None:
        return False  # clamped to finite values
    if name in INFINITE_AT_ZERO and all(zeros):
        ctx.freeze(first.dims[position], text=f"{name} is not finite where a missing unit is 0")
        return False
    if name == "mul":
        return any(zeros)
    if name in {"maximum", "minimum", "fmax", "fmin", "max", "min"}:
        return all(zeros)
    if name == "lerp":
        return zeros[0] and zeros[1]
    if name == "threshold":
        return zeros[0] and (arguments["threshold"] < 0 or arguments["value"] == 0)
    if name in {"add", "sub", "rsub"}:
        scalars = [arguments[k] for k in ("other",) if k in arguments and not isinstance(arguments[k], Value)]
        return all(zeros) and all(s == 0 for s in scalars)
    if name == "addcmul":
        return zeros[0] and any(zeros[1:])
    if name in {"div", "floor_divide", "fmod", "remainder", "addcdiv"}:
        divisor = arguments.get("tensor2") if name == "addcdiv" else arguments.get("other")
        if isinstance(divisor, Value) and aligned_zero(divisor, position):
            ctx.freeze(divisor.dims[position], text=f"{name} divides by a missing unit, which is 0")
            return False
        divided = [arguments.get("self"), *([arguments["tensor1"]] if name == "addcdiv" else [])]
        return all(isinstance(value, Value) and aligned_zero(value, position) for value in divided)
    if name == "pow":
        return _zero_of_power(ctx, arguments, position)
    if name in {"clamp", "hardtanh", "clamp_min", "clamp_max"}:
        low = arguments.get("min", arguments.get("min_val"))
        high = arguments.get("max", arguments.get("max_val"))
        bounded = not any(isinstance(bound, Value) for bound in (low, high))
        return bounded and zeros[0] and (low is None or low <= 0) and (high is None or high >= 0)
    if name == "masked_fill":
        return aligned_zero(arguments["self"], position) and arguments["value"] == 0
    if name == "where":
        chosen = [arguments.get("self"), arguments.get("other")]
        return all(aligned_zero(c, position) if isinstance(c, Value) else c == 0 for c in chosen)
    if name == "copy":
        return aligned_zero(arguments["src"], position)
    if name == "zero":
        return True
    if name == "fill":
        return not isinstance(arguments["value"], Value) and bool(arguments["value"] == 0)
    return False


def _zero_of_power(ctx: Context, arguments: dict[str, Any], position: int) -> bool:
    base, exponent = arguments.get("self"), arguments.get("exponent")
    if not isinstance(base, Value) or not aligned_zero(base, position):
        return False
    if exponent is None or isinstance(exponent, Value) or exponent < 1:
        if exponent is None or isinstance(exponent, Value) or exponent != 0:
            ctx.freeze(base.dims[position], text="pow is not finite where a missing unit is 0")
        return False
    return True


@rule(aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.feature_dropout_.default)
@rule(aten.alpha_dropout.default, aten.alpha_dropout_.default)
@rule(aten.feature_alpha_dropout.default, aten.feature_alpha_dropout_.default)
@rule(aten.contiguous.default, aten.clone.default, aten.detach.default, aten.detach_.default, aten.alias.default)
@rule(aten.lift_fresh.default, aten.lift_fresh_copy.default, aten._to_copy.default, aten.type_as.default)
@rule(aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.pin_memory.default)
@rule(aten.bernoulli.default, aten.bernoulli.p, aten.bernoulli_.float, aten.bernoulli_.Tensor, aten.normal_.default)
@rule(aten.uniform_.default, aten.exponential_.default, aten.random_)
@rule(aten.copy_.default, aten.zero_.default, aten.fill_.Scalar)
@rule(aten.hardswish.default, aten.hardswish_.default, aten.log_sigmoid.default)
@rule(aten.masked_fill.Tensor, aten.masked_fill_.Tensor, aten.where.ScalarOther, aten.where.ScalarSelf)
@rule(aten.where.Scalar, aten.rsub.Tensor, aten.floor_divide, aten.isin.Tensor_Scalar)
@rule(aten.__and__.Tensor, aten.__or__.Tensor, aten.__and__.Scalar, aten.__or__.Scalar)
def same_shape(ctx: Context, **arguments: Any) -> Value:
    arguments = {
        name: value for name, value in arguments.items() if not (name == "other" and ctx.operator in {"to", "type_as"})
    }
    return elementwise(ctx, **arguments)


@rule(aten.prelu.default)
def prelu(ctx: Context, self: Value, weight: Value, **_: Any) -> Value:
    if axes.size(weight.dims[0] if weight.ndim else ()) != 1:
        ctx.unify(self.dims[1 if self.ndim > 1 else 0], weight.dims[0])
    return Value(self.dims, tuple(self.is_zero(d) for d in range(self.ndim)))


@rule(aten.glu.default)
def glu(ctx: Context, self: Value, dim: int, **_: Any) -> Value:
    dim = dim % self.ndim
    half = axes.size(self.dims[dim]) // 2
    first, second = axes.split(self.dims[dim], [half, half], ctx.reason())
    ctx.unify(first, second)
    dims = (*self.dims[:dim], first, *self.dims[dim + 1 :])
    return Value(dims, tuple(self.is_zero(d) for d in range(self.ndim)))


@rule(aten.native_dropout.default)
def native_dropout(ctx: Context, input: Value, **_: Any) -> list[Value]:
    return [
        Value(input.dims, tuple(map(input.is_zero, range(input.ndim)))),
        Value(input.dims, (False,) * input.ndim),
    ]


def is_pointwise(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return False
    tagged = torch.Tag.pointwise in target.tags or _functional_is_pointwise(target)
    return (tagged or base_name(target) in ALIASES.values()) and len(target._schema.returns) == 1


def _functional_is_pointwise(target: torch._ops.OpOverload) -> bool:
    """In-place variants carry the tag only in part; ask the functional operator of the same overload."""
    name = target._schema.name.removeprefix("aten::")
    if not name.endswith("_") or name.endswith("__"):
        return False
    packet = getattr(aten, name[:-1], None)
    overload = getattr(packet, target._overloadname, None) if packet is not None else None
    return overload is not None and torch.Tag.pointwise in overload.tags
