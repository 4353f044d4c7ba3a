"""Products summed over a shared index: linear layers, matrix products, einsum, attention."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from sdp_compile.ir.schema import bind, tensor_arguments
from sdp_compile.ops import narrow
from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators.at_zero import Call, Outcome, affine, either_zero, product_and_sum, zero_if
from sdp_compile.structure.operators.context import Context, Value
from sdp_compile.structure.operators.elementwise import aligned_zero, broadcast
from sdp_compile.structure.operators.parts import NarrowCall, Split
from sdp_compile.structure.operators.table import Contraction, Sizes, Work, rule

aten = torch.ops.aten


def contract(ctx: Context, operands: Sequence[Value], labels: Sequence[Sequence[str]], out: Sequence[str]) -> Value:
    """Returns the result of an einsum: equal labels are one axis; a label that the result lacks is summed over."""
    dims: dict[str, Dim] = {}
    zero: dict[str, list[bool]] = {}
    for value, names in zip(operands, labels, strict=True):
        for position, name in enumerate(names):
            dim = value.dims[position]
            if axes.size(dim) != 1:
                if axes.size(dims.get(name, ())) != 1:
                    ctx.unify(dims[name], dim)
                else:
                    dims[name] = dim
                zero.setdefault(name, []).append(value.is_zero(position))
            dims.setdefault(name, dim)
    for name, dim in dims.items():
        if name not in out:
            ctx.contract(dim, *zero.get(name, []))
    return Value(tuple(dims[name] for name in out), tuple(any(zero.get(name, [])) for name in out))


def plus(ctx: Context, product: Value, bias: Value | None) -> Value:
    """Returns a product with a bias added to it, broadcast."""
    if bias is None:
        return product
    dims = broadcast(ctx, [product, bias], product.ndim)
    zero = tuple(product.zero[p] and aligned_zero(bias, p) for p in range(-product.ndim, 0))
    return Value(dims, zero)


def _linear_contractions(node: fx.Node) -> list[Contraction]:
    input, weight = tensor_arguments(node)[:2]
    return [Contraction(input, weight, input.meta["val"].ndim - 1)]


def _linear_work(node: fx.Node, sizes: Sizes) -> list[Work]:
    left, right = tensor_arguments(node)[:2]
    return _work(node, left, right, sizes)


def _narrow_linear(node: fx.Node, weight: fx.Node, split: Split) -> NarrowCall | None:
    arguments = bind(node)
    if arguments["weight"] is not weight:
        return None
    args = (arguments["input"], split.owned, split.rest, arguments["bias"], split.dim, split.runs)
    return narrow.linear, args


def _contractions(node: fx.Node) -> list[Contraction]:
    left, right = tensor_arguments(node)[-2:]
    last, rows = left.meta["val"].ndim - 1, max(right.meta["val"].ndim - 2, 0)
    return [Contraction(left, right, last), Contraction(right, left, rows)]


def _product_work(node: fx.Node, sizes: Sizes) -> list[Work]:
    left, right = tensor_arguments(node)[-2:]
    return _work(node, left, right, sizes)


def _work(node: fx.Node, left: fx.Node, right: fx.Node, sizes: Sizes) -> list[Work]:
    """Each element of the result sums over the last dimension of the left factor."""
    return [Work(2.0 * (sizes(left) or (1,))[-1] * prod(sizes(node)), (left, right, node))]


def _narrow_product(node: fx.Node, weight: fx.Node, split: Split) -> NarrowCall | None:
    arguments = list(bind(node).values())
    bias = arguments.pop(0) if node.target is aten.addmm.default else None
    x, second, *scales = arguments
    plain = all(scale == 1 for scale in scales) and (bias is None or bias.meta["val"].ndim == 1)
    if second is not weight or weight.meta["val"].ndim != 2 or not plain:
        return None
    return narrow.product, (x, split.owned, split.rest, bias, split.dim, split.runs)


@rule(
    aten.linear.default,
    at_zero=affine,
    flops=_linear_work,
    contractions=_linear_contractions,
    narrow=_narrow_linear,
)
def linear(ctx: Context, input: Value, weight: Value, bias: Value | None = None, **_: Any) -> Value:
    batch = [f"b{d}" for d in range(input.ndim - 1)]
    rows = ["o"] if weight.ndim == 2 else []
    return plus(ctx, contract(ctx, [input, weight], [[*batch, "i"], [*rows, "i"]], [*batch, *rows]), bias)


@rule(
    *(aten.matmul.default, aten.mm.default),
    at_zero=either_zero,
    flops=_product_work,
    contractions=_contractions,
    narrow=_narrow_product,
)
@rule(aten.bmm.default, at_zero=either_zero, flops=_product_work, contractions=_contractions)
@rule(aten.mv.default, aten.dot.default, aten.linalg_matmul.default, at_zero=either_zero)
@rule(aten._sparse_mm.default, at_zero=either_zero)
def matmul(ctx: Context, **operands: Any) -> Value:
    """A sparse operand counts like a dense one: what it lacks is 0."""
    first, second = (value for value in operands.values() if isinstance(value, Value))
    return _matmul(ctx, first, second)


@rule(aten._sparse_mm.default)
def sparse_mm(ctx: Context, sparse: Value, dense: Value) -> Value:
    return _matmul(ctx, sparse, dense)


def _matmul(ctx: Context, a: Value, b: Value) -> Value:
    batch = max(a.ndim, b.ndim, 2) - 2
    names = [f"b{d}" for d in range(batch)]
    left = [*names[batch - max(a.ndim - 2, 0) :], "n", "k"][-a.ndim :] if a.ndim > 1 else ["k"]
    right = [*names[batch - max(b.ndim - 2, 0) :], "k", "m"] if b.ndim > 1 else ["k"]
    out = [*names, *(["n"] if a.ndim > 1 else []), *(["m"] if b.ndim > 1 else [])]
    return contract(ctx, [a, b], [left, right], out)


@rule(
    aten.addmm.default,
    at_zero=product_and_sum,
    flops=_product_work,
    contractions=_contractions,
    narrow=_narrow_product,
)
@rule(aten._sparse_addmm.default, at_zero=product_and_sum)
def addmm(ctx: Context, self: Value, mat1: Value, mat2: Value, **_: Any) -> Value:
    return plus(ctx, _matmul(ctx, mat1, mat2), self)


@rule(aten.baddbmm.default, at_zero=product_and_sum, flops=_product_work, contractions=_contractions)
def baddbmm(ctx: Context, self: Value, batch1: Value, batch2: Value, beta: Any = 1, **_: Any) -> Value:
    # With beta 0 the first argument does not matter; it may be uninitialised memory of the full size.
    product = _matmul(ctx, batch1, batch2)
    result = plus(ctx, product, self)
    return product if beta == 0 else result


def _bilinear(call: Call) -> Outcome:
    return zero_if(call.zero("input1", "input2", "weight") and call.absent("bias"))


@rule(aten.bilinear.default, at_zero=_bilinear)
def bilinear(ctx: Context, input1: Value, input2: Value, weight: Value, bias: Value | None = None, **_: Any) -> Value:
    batch = [f"b{d}" for d in range(input1.ndim - 1)]
    labels = [[*batch, "i"], [*batch, "j"], ["o", "i", "j"]]
    return plus(ctx, contract(ctx, [input1, input2, weight], labels, [*batch, "o"]), bias)


def _einsum_at_zero(call: Call) -> Outcome:
    return zero_if(any(map(call.is_zero, call.arguments["tensors"])))


def _einsum_work(node: fx.Node, sizes: Sizes) -> list[Work]:
    """The work is the product of the sizes of all letters; operands with an ellipsis do not count."""
    arguments = bind(node)
    terms = arguments["equation"].replace(" ", "").partition("->")[0].split(",")
    lengths: dict[str, int] = {}
    for term, operand in zip(terms, arguments["tensors"], strict=True):
        if "." not in term:
            lengths.update(zip(term, sizes(operand), strict=True))
    return [Work(2.0 * prod(lengths.values()), tuple(arguments["tensors"]))]


@rule(aten.einsum.default, at_zero=_einsum_at_zero, flops=_einsum_work)
def einsum(ctx: Context, equation: str, tensors: Sequence[Value], **_: Any) -> Value:
    left, _arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    extra = max(value.ndim - len(term.replace("...", "")) for value, term in zip(tensors, terms, strict=True))
    ellipsis = [f"_{d}" for d in range(extra)]

    def expand(term: str, ndim: int) -> list[str]:
        if "..." not in term:
            return list(term)
        head, _, tail = term.partition("...")
        return [*head, *ellipsis[extra - (ndim - len(head) - len(tail)) :], *tail]

    labels = [expand(term, value.ndim) for term, value in zip(terms, tensors, strict=True)]
    if "->" in equation:
        head, dots, tail = right.partition("...")
        out = [*head, *(ellipsis if dots else []), *tail]
    else:
        flat = [name for names in labels for name in names]
        out = [*ellipsis, *sorted(name for name in set(flat) if flat.count(name) == 1 and name not in ellipsis)]
    tensors = [_without_diagonals(ctx, value, names) for value, names in zip(tensors, labels, strict=True)]
    return contract(ctx, tensors, [list(dict.fromkeys(names)) for names in labels], out)


def _without_diagonals(ctx: Context, value: Value, labels: Sequence[str]) -> Value:
    """Returns a value with one dimension for each label; a repeated label takes a diagonal, which stays whole."""
    ctx.freeze(*(dim for dim, name in zip(value.dims, labels, strict=True) if labels.count(name) > 1))
    first = [labels.index(name) for name in dict.fromkeys(labels)]
    return Value(tuple(value.dims[d] for d in first), tuple(value.is_zero(d) for d in first))


def _attention_work(node: fx.Node, sizes: Sizes) -> list[Work]:
    """The product of queries and keys, and that of the weights and values."""
    query, key = tensor_arguments(node)[:2]
    keys = sizes(key)[-2]
    return [Work(2.0 * prod(sizes(query)) * keys, (query,)), Work(2.0 * prod(sizes(node)) * keys, (node,))]


@rule(
    aten.scaled_dot_product_attention.default,
    at_zero=lambda call: zero_if(call.zero("value")),
    flops=_attention_work,
)
def attention(
    ctx: Context,
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> Value:
    if scale is None:  # the default is computed from the head dimension, which may be cut
        ctx.pin("scale", axes.size(query.dims[-1]) ** -0.5)
    if enable_gqa and query.ndim >= 3:
        key, value = _repeated_heads(ctx, query, key), _repeated_heads(ctx, query, value)
    names = [f"b{d}" for d in range(query.ndim - 2)]
    scores = contract(ctx, [query, key], [[*names, "l", "e"], [*names, "s", "e"]], [*names, "l", "s"])
    if attn_mask is not None:
        broadcast(ctx, [scores, attn_mask], scores.ndim)
    ctx.freeze(scores.dims[-1], text="softmax runs over it")
    weights = Value(scores.dims, (False,) * scores.ndim)
    return contract(ctx, [weights, value], [[*names, "l", "s"], [*names, "s", "v"]], [*names, "l", "v"])


def _repeated_heads(ctx: Context, query: Value, value: Value) -> Value:
    """Returns keys or values in which each head stands for a group of query heads (grouped-query attention)."""
    heads = value.dims[-3]
    group = axes.size(query.dims[-3]) // axes.size(heads)
    dims = (*value.dims[:-3], (*heads, *axes.fresh(group)), *value.dims[-2:])
    return Value(dims, value.zero, value.storage)
