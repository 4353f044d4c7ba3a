"""Forward FLOPs of the operators that matter, and the axes that each scales with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import fx

from sdp_compile.structure.families import FlopTerm
from sdp_compile.structure.layout import Layout, families
from sdp_compile.structure.operators import lookup


def flop_terms(
    node: fx.Node, example: Callable[[Any], tuple[int, ...]], layouts: Callable[[fx.Node], Sequence[Layout]]
) -> list[FlopTerm]:
    """Returns the FLOP terms of one node (two per multiply-add); none for operators whose cost does not count.

    Args:
        node: The call.
        example: Gives the sizes of a fake tensor in the example.
        layouts: Gives the layouts of the dimensions of a node's tensor.
    """
    flops = lookup(node.target).flops
    works = [] if flops is None else flops(node, lambda operand: example(operand.meta["val"]))
    terms = []
    for work in works:
        cut = [name for operand in work.scales_with for dim in layouts(operand) for name in families(dim)]
        terms.append(FlopTerm(work.flops, tuple(dict.fromkeys(cut))))
    return terms
