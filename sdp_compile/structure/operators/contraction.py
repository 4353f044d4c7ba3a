"""Products summed over a shared index: linear layers, matrix products, einsum, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdp_compile.structure import axes
from sdp_compile.structure.axes import Dim
from sdp_compile.structure.operators import Context, Value, rule
from sdp_compile.structure.operators.elementwise import aligned_zero, broadcast

aten = torch.ops.aten


def contract(ctx: Context, operands: Sequence[Value], labels: Sequence[Sequence[str]], out: Sequence[str]) -> Value:
    """An einsum: equal labels are one axis; a label that the result lacks is summed over."""
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
    """A product with a bias added, broadcast."""
    if bias is None:
        return product
    dims = broadcast(ctx, [product, bias], product.ndim)
    zero = tuple(product.zero[p] and aligned_zero(bias, p) for p in range(-product.ndim, 0))
    return Value(dims, zero)


@rule(aten.linear.default)
def linear(ctx: Context, input: Value, weight: Value, bias: Value | None = None, **_: Any) -> Value:
    batch = [f"b{d}" for d in range(input.ndim - 1)]
    rows = ["o"] if weight.ndim == 2 else []
    return plus(ctx, contract(ctx, [input, weight], [[*batch, "i"], [*rows, "i"]], [*batch, *rows]), bias)


@rule(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)
@rule(aten.linalg_matmul.default)
def matmul(ctx: Context, self: Value, **others: Any) -> Value:
    other = next(value for value in others.values() if isinstance(value, Value))
    return _matmul(ctx, self, other)


def _matmul(ctx: Context, a: Value, b: Value) -> Value:
    batch = max(a.ndim, b.ndim, 2) - 2
    names = [f"b{d}" for d in range(batch)]
    left = [*names[batch - max(a.ndim - 2, 0) :], "n", "k"][-a.ndim :] if a.ndim > 1 else ["k"]
    right = [*names[batch - max(b.ndim - 2, 0) :], "k", "m"] if b.ndim > 1 else ["k"]
    out = [*names, *(["n"] if a.ndim > 1 else []), *(["m"] if b.ndim > 1 else [])]
    return contract(ctx, [a, b], [left, right], out)


@rule(aten.addmm.default)
def addmm(ctx: Context, self: Value, mat1: Value, mat2: Value, **_: Any) -> Value:
    return plus(ctx, _matmul(ctx, mat1, mat2), self)


@rule(aten.baddbmm.default)
def baddbmm(ctx: Context, self: Value, batch1: Value, batch2: Value, beta: Any = 1, **_: Any) -> Value:
    # With beta 0 the input is ignored, and may be uninitialised memory of the full size.
    product = _matmul(ctx, batch1, batch2)
    result = plus(ctx, product, self)
    return product if beta == 0 else result


@rule(aten.bilinear.default)
def bilinear(ctx: Context, input1: Value, input2: Value, weight: Value, bias: Value | None = None, **_: Any) -> Value:
    batch = [f"b{d}" for d in range(input1.ndim - 1)]
    labels = [[*batch, "i"], [*batch, "j"], ["o", "i", "j"]]
    return plus(ctx, contract(ctx, [input1, input2, weight], labels, [*batch, "o"]), bias)


@rule(aten.einsum.default)
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
    """The value with one dimension per label: those of a repeated label are the positions of a diagonal."""
    ctx.freeze(*(dim for dim, name in zip(value.dims, labels, strict=True) if labels.count(name) > 1))
    first = [labels.index(name) for name in dict.fromkeys(labels)]
    return Value(tuple(value.dims[d] for d in first), tuple(value.is_zero(d) for d in first))


@rule(aten.scaled_dot_product_attention.default)
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
    """Keys and values as grouped-query attention uses them: every head stands for a group of query heads."""
    heads = value.dims[-3]
    group = axes.size(query.dims[-3]) // axes.size(heads)
    dims = (*value.dims[:-3], (*heads, *axes.fresh(group)), *value.dims[-2:])
    return Value(dims, value.zero, value.storage)
