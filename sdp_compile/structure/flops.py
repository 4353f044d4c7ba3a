"""Forward FLOPs of the operators that matter, and the axes that each scales with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from sdp_compile.structure.families import FlopTerm
from sdp_compile.structure.layout import Layout, families

aten = torch.ops.aten

_LINEAR = {aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default}
_LINEAR |= {aten.baddbmm.default}
_CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
}
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}


def flop_terms(
    node: fx.Node, example: Callable[[Any], tuple[int, ...]], layouts: Callable[[fx.Node], Sequence[Layout]]
) -> list[FlopTerm]:
    """The FLOP terms of one node (two per multiply-add); empty for operators whose cost does not count."""
    target: Any = node.target
    tensors = [a for a in node.args if isinstance(a, fx.Node) and isinstance(a.meta.get("val"), torch.Tensor)]

    def term(flops: float, *operands: fx.Node) -> FlopTerm:
        cut = [name for operand in operands for dim in layouts(operand) for name in families(dim)]
        return FlopTerm(flops, tuple(dict.fromkeys(cut)))

    if target in _LINEAR:
        left, right = tensors[-2:] if target in {aten.addmm.default, aten.baddbmm.default} else tensors[:2]
        contracted = (example(left.meta["val"]) or (1,))[-1]
        return [term(2.0 * contracted * prod(example(node.meta["val"])), left, right, node)]
    if target in _CONVOLUTIONS:
        weight = example(tensors[1].meta["val"])
        return [term(2.0 * prod(weight[1:]) * prod(example(node.meta["val"])), tensors[1])]
    if target in _TRANSPOSED:
        weight = example(tensors[1].meta["val"])
        return [term(2.0 * prod(weight[1:]) * prod(example(tensors[0].meta["val"])), tensors[1])]
    if target is aten.einsum.default:
        operands = [a for a in node.args[1] if isinstance(a, fx.Node)]  # type: ignore[union-attr]
        equation = str(node.args[0]).replace(" ", "").partition("->")[0].split(",")
        lengths: dict[str, int] = {}
        for names, operand in zip(equation, operands, strict=True):
            if "." not in names:
                lengths.update(zip(names, example(operand.meta["val"]), strict=True))
        cut = [name for operand in operands for dim in layouts(operand) for name in families(dim)]
        return [FlopTerm(2.0 * prod(lengths.values()), tuple(dict.fromkeys(cut)))]
    if target is aten.scaled_dot_product_attention.default:
        query, key = tensors[:2]
        scores = 2.0 * prod(example(query.meta["val"])) * example(key.meta["val"])[-2]
        output = 2.0 * prod(example(node.meta["val"])) * example(key.meta["val"])[-2]
        return [term(scores, query), term(output, node)]
    return []
