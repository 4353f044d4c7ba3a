"""The residual branches that a rank drops, as nodes of its graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sdp_compile.errors import LoweringError
from sdp_compile.ir.program import Program
from sdp_compile.passes.base import PassContext, inherited
from sdp_compile.structure.blocks.block import Branch


def dropped_branches(program: Program, context: PassContext) -> list[Branch]:
    """Returns the branches of one mode that the rank does not own."""
    plan = context.plan
    if plan.block_family is None:
        return []
    blocks, units = context.analysis.blocks, context.analysis.blocks.units(plan.block_family)
    numbers = [number for unit in sorted(plan.dropped_blocks(context.rank)) for number in units[unit]]
    return [branch for number in numbers for branch in blocks.blocks[number].branches[program.mode]]


def nodes_of(graph: fx.Graph, branches: list[Branch]) -> list[tuple[fx.Node, fx.Node]]:
    """Returns the add and the branch's output of each branch.

    Raises:
        LoweringError: If an earlier pass has removed or renamed one of them.
    """
    nodes = {node.name: node for node in graph.nodes}
    for name in (name for branch in branches for name in (branch.add, branch.operand)):
        if name not in nodes:
            raise LoweringError(
                f"The graph has no node {name!r}, which block analysis found in it. Run the passes on blocks before "
                "those that remove or rename nodes."
            )
    return [(nodes[branch.add], nodes[branch.operand]) for branch in branches]


def call_like(
    like: fx.Node, target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> fx.Node:
    """Returns a new node at the graph's insertion point, described like the activation ``like`` that it stands for."""
    node = like.graph.create_node("call_function", target, args, kwargs or {}, name=target._opname)
    node.meta = inherited(like)
    values = fx.node.map_arg((args, kwargs or {}), lambda source: source.meta["val"])
    node.meta["val"] = target(*values[0], **values[1])
    if node.meta["val"].ndim != like.meta["val"].ndim:
        node.meta.pop("layouts", None)  # they are the activation's
    return node
