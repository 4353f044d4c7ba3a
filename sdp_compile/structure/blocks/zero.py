"""Is the result of a region 0 when its parameters are 0?

An abstract run over three values, one rule per operator. Of ATen's, one without a rule makes something finite.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import fx

from sdp_compile.ir.effects import Effects, operator_name


class Value(Enum):
    """What is known of all elements of a tensor, or of a number.

    ``UNDEFINED`` is what may be NaN or have a NaN gradient once the parameters are 0, as ``0 / 0`` in weight
    normalisation; it is contagious.
    """

    ZERO = "zero"
    FINITE = "finite"
    UNDEFINED = "undefined"


def is_zero_without(result: fx.Node, region: Sequence[fx.Node], parameters: Collection[str], effects: Effects) -> bool:
    """Whether ``result`` is 0 when ``parameters`` are 0 and everything else outside of ``region`` is finite.

    ``region`` lists nodes in the order of the graph.
    """
    values: dict[fx.Node, Value] = {}
    for node in region:
        if node.op == "get_attr":
            values[node] = Value.ZERO if node.target in parameters else Value.FINITE
        else:
            values[node] = evaluate(node, values, effects.stale.get(node, {}))
    return values[result] is Value.ZERO


def evaluate(node: fx.Node, values: Mapping[fx.Node, Value], stale: Mapping[fx.Node, fx.Node] | None = None) -> Value:
    """The value of a node; nodes that ``values`` does not name are finite.

    ``stale`` maps inputs that have been overwritten since they were made, possibly in part, to the writer.
    """

    def value_of(argument: Any) -> Value:
        if isinstance(argument, fx.Node):
            value = values.get(argument, Value.FINITE)
            writer = (stale or {}).get(argument)
            return value if writer is None else _common((value, values.get(writer, Value.FINITE)))
        if isinstance(argument, list | tuple):
            return _common([value_of(item) for item in argument])
        if isinstance(argument, int | float | complex):
            return Value.ZERO if argument == 0 else Value.FINITE
        return Value.FINITE

    sources = [value_of(source) for source in node.all_input_nodes]
    if Value.UNDEFINED in sources:
        return Value.UNDEFINED
    if node.target is operator.getitem:
        return value_of(node.args[0])
    name = "add" if node.target in (operator.add, operator.iadd) else operator_name(node)
    base = name if name.endswith("__") else name.removesuffix("_")
    if base in _MAKES_ZEROS:
        return Value.ZERO
    if Value.ZERO not in sources:
        return Value.FINITE
    if not isinstance(node.target, torch._ops.OpOverload):
        return Value.ZERO if name == "add" and set(sources) == {Value.ZERO} else Value.UNDEFINED
    rule = _RULES.get(base)
    if rule is not None:
        return rule(Call.of(node, value_of))
    return Value.UNDEFINED if base.startswith("linalg_") or "::" in name else Value.FINITE


def _common(values: Sequence[Value]) -> Value:
    if Value.UNDEFINED in values:
        return Value.UNDEFINED
    return Value.ZERO if values and all(value is Value.ZERO for value in values) else Value.FINITE


@dataclass(frozen=True)
class Call:
    """The arguments of one ATen call by the names of its schema, defaults included, and their values."""

    arguments: Mapping[str, Any]
    value_of: Callable[[Any], Value]

    @classmethod
    def of(cls, node: fx.Node, value_of: Callable[[Any], Value]) -> Call:
        assert isinstance(node.target, torch._ops.OpOverload)
        bound: dict[str, Any] = {}
        for index, argument in enumerate(node.target._schema.arguments):
            default = argument.default_value if argument.has_default_value() else None
            bound[argument.name] = (
                node.args[index] if index < len(node.args) else node.kwargs.get(argument.name, default)
            )
        return cls(bound, value_of)

    def first(self, count: int) -> list[Any]:
        return list(self.arguments.values())[:count]

    def zero(self, *names: str) -> bool:
        """Whether one of these is given and 0."""
        return any(self.value_of(self.arguments[name]) is Value.ZERO for name in names if name in self.arguments)

    def no(self, *names: str) -> bool:
        """Whether each of these is absent or 0."""
        return all(self.arguments.get(name) is None or self.zero(name) for name in names)


Rule = Callable[[Call], Value]
_RULES: dict[str, Rule] = {}
_MAKES_ZEROS = frozenset("zeros new_zeros zeros_like zero".split())


def zero_when(names: str) -> Callable[[Callable[[Call], bool]], Callable[[Call], bool]]:
    """Registers for operators when their result is 0; operators of other namespaces go under ``namespace::name``.

    An in-place variant goes under the name without the underscore.
    """

    def register(condition: Callable[[Call], bool]) -> Callable[[Call], bool]:
        for name in names.split():
            _RULES[name] = lambda call: Value.ZERO if condition(call) else Value.FINITE
        return condition

    return register


def _undefined_where(names: str, singular: Callable[[Call], bool], zero: Callable[[Call], bool]) -> None:
    for name in names.split():
        _RULES[name] = lambda call: Value.UNDEFINED if singular(call) else Value.ZERO if zero(call) else Value.FINITE


def _is_zero(call: Call, arguments: Iterable[Any]) -> list[bool]:
    return [call.value_of(argument) is Value.ZERO for argument in arguments]


@zero_when(
    """
    relu relu6 leaky_relu gelu silu tanh hardswish mish elu selu celu prelu rrelu glu softsign softshrink hardshrink
    tanhshrink sin sinh asin asinh tan atan atanh erf expm1 log1p neg negative abs sign square trunc round floor ceil
    dropout feature_dropout native_dropout view reshape flatten unflatten permute transpose t numpy_T mT mH adjoint
    swapaxes swapdims movedim
    moveaxis squeeze unsqueeze expand expand_as view_as reshape_as broadcast_to repeat repeat_interleave tile contiguous
    clone alias detach to _to_copy type_as roll flip slice select narrow index index_select gather take_along_dim split
    split_with_sizes tensor_split chunk unbind unfold im2col col2im diagonal tril triu sum mean nansum cumsum amax amin
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d pixel_shuffle
    pixel_unshuffle channel_shuffle native_channel_shuffle reflection_pad1d reflection_pad2d replication_pad1d
    replication_pad2d linalg_vector_norm norm view_as_real view_as_complex real imag nan_to_num grid_sampler fft_fft
    fft_ifft fft_rfft fft_irfft fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn
    """
)
def _keeps_zero(call: Call) -> bool:
    return _is_zero(call, call.first(1))[0]


@zero_when("mul multiply matmul mm bmm mv dot vdot inner outer ger _grouped_mm transformers::grouped_mm_fallback")
def _product(call: Call) -> bool:
    return any(_is_zero(call, call.first(2)))


@zero_when("einsum")
def _product_of_list(call: Call) -> bool:
    return any(_is_zero(call, call.arguments["tensors"]))


@zero_when("add sub rsub subtract maximum minimum lerp complex")
def _sum(call: Call) -> bool:
    return all(_is_zero(call, call.first(2)))


@zero_when("cat concat concatenate stack hstack vstack")
def _sum_of_list(call: Call) -> bool:
    return all(_is_zero(call, call.first(1)[0]))


@zero_when("max min")
def _reduction_or_pair(call: Call) -> bool:
    return call.zero("self") and ("other" not in call.arguments or call.zero("other"))


@zero_when("where")
def _choice(call: Call) -> bool:
    return call.zero("self") and call.zero("other")


@zero_when("linear conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d")
def _affine(call: Call) -> bool:
    return call.zero("input", "weight") and call.no("bias")


@zero_when("addmm addbmm addmv addr baddbmm addcmul")
def _product_and_sum(call: Call) -> bool:
    summand, *factors = _is_zero(call, call.first(3))
    return summand and any(factors)


@zero_when("batch_norm instance_norm native_batch_norm")
def _statistics_norm(call: Call) -> bool:
    return call.zero("weight") and call.no("bias")  # running statistics turn a 0 input into something else


@zero_when("layer_norm native_layer_norm group_norm native_group_norm rms_norm")
def _sample_norm(call: Call) -> bool:
    return call.zero("weight", "input") and call.no("bias")


@zero_when("embedding")
def _lookup(call: Call) -> bool:
    return call.zero("weight")


@zero_when("scaled_dot_product_attention")
def _attention(call: Call) -> bool:
    return call.zero("value")


@zero_when("masked_fill constant_pad_nd fill")
def _filled(call: Call) -> bool:
    return call.zero("self") and call.zero("value")


@zero_when("pad")
def _padded(call: Call) -> bool:
    return call.zero("self") and (call.arguments["mode"] != "constant" or call.no("value"))


@zero_when("clamp clip hardtanh clamp_min clamp_max")
def _clamped(call: Call) -> bool:
    lower = call.arguments.get("min", call.arguments.get("min_val"))
    upper = call.arguments.get("max", call.arguments.get("max_val"))
    bounds = all(bound is None or isinstance(bound, int | float) for bound in (lower, upper))
    return call.zero("self") and bounds and (lower or 0) <= 0 <= (upper or 0)


@zero_when("copy")
def _copied(call: Call) -> bool:
    return call.zero("src")


@zero_when("index_put index_copy index_add scatter scatter_add slice_scatter select_scatter masked_scatter")
def _scattered(call: Call) -> bool:
    return call.zero("self") and call.zero("values", "source", "src", "value")


def _never(call: Call) -> bool:
    return False


def _divides_by_zero(call: Call) -> bool:
    return _is_zero(call, call.first(2))[1]


_undefined_where("div divide true_divide floor_divide fmod remainder", _divides_by_zero, _keeps_zero)
_undefined_where("reciprocal rsqrt sqrt log log2 log10 logit digamma lgamma acosh _weight_norm", _keeps_zero, _never)


def _pole(call: Call) -> bool:
    exponent = call.arguments["exponent"]
    return call.zero("self") and not (isinstance(exponent, int | float) and exponent > 0)


_undefined_where("pow", _pole, _keeps_zero)
