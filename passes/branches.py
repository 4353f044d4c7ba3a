"""The residual branches that a worker drops, as nodes of its graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from sdp_compile.errors import LoweringError
from sdp_compile.ir.program import Program
from sdp_compile.passes.base import PassContext, inherited
from sdp_compile.structure.blocks.block import Block


def dropped_blocks(context: PassContext) -> list[Block]:
    """Returns the residual branches that the worker does not own."""
    plan = context.plan
    if plan.block_family is None:
        return []
    blocks, units = context.analysis.blocks, context.analysis.blocks.units(plan.block_family)
    return [blocks.blocks[number] for unit in sorted(plan.dropped_blocks(context.rank)) for number in units[unit]]


def outputs_of(program: Program, blocks: list[Block]) -> list[tuple[fx.Node, fx.Node]]:
    """Returns the nodes at which blocks end: the add, and each output of a block that it adds or multiplies and adds.

    Args:
        program: The program that was analysed, or one that earlier passes made of it.
        blocks: What block analysis found.

    Raises:
        LoweringError: If an earlier pass removed or renamed one of the nodes.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    branches = [branch for block in blocks for branch in block.branches[program.key]]
    for name in (name for branch in branches for name in (branch.add, *branch.operands)):
        if name not in nodes:
            raise LoweringError(
                f"The graph has no node {name!r}, which block analysis found. Run the passes on blocks before those "
                "that remove or rename nodes."
            )
    return [(nodes[branch.add], nodes[operand]) for branch in branches for operand in branch.operands]


def call_like(
    like: fx.Node, target: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> fx.Node:
    """Creates a node that takes the place of an activation, at the graph's insertion point.

    Args:
        like: The activation. The new node gets its metadata.
        target: The operator.
        args: The operator's arguments.
        kwargs: The operator's keyword arguments.

    Returns:
        The node, with the fake tensor that the operator returns as ``meta["val"]``.
    """
    node = like.graph.create_node("call_function", target, args, kwargs or {}, name=target._opname)
    node.meta = inherited(like)
    values = fx.node.map_arg((args, kwargs or {}), lambda source: source.meta["val"])
    node.meta["val"] = target(*values[0], **values[1])
    if node.meta["val"].ndim != like.meta["val"].ndim:
        node.meta.pop("layouts", None)  # those of the activation have another number of dimensions
    return node
