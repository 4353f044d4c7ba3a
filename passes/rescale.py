"""Scales activations in training, to make up for the units that a worker lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import fx

from sdp_compile import ops
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.passes.base import Pass, PassContext, inherited
from sdp_compile.structure.layout import Layout, families, restrict, spread
from sdp_compile.structure.operators import lookup

Factor: TypeAlias = float | tuple[float, ...]


@dataclass(frozen=True)
class Rescale(Pass):
    """Multiplies what a worker keeps by N / owners in training, as dropout does.

    With N workers, a unit of a cut axis is scaled in the activation that is contracted with a cut parameter, and a
    block in the output of its branch. The programs for evaluation, and of plans without ``rescale``, stay as they are.
    """

    name: ClassVar[str] = "rescale"

    def run(self, program: Program, context: PassContext) -> Program:
        if program.mode != "train" or not context.plan.rescales(context.rank):
            return program
        program = copy_program(program)
        graph = program.graph
        for node in list(graph.nodes):
            for activation, dim in contractions(node):
                layout = restrict(activation.meta["layouts"][dim], context.plan.ownership.keys())
                if families(layout):
                    _insert(graph, node, activation, dim, _axis_factor(layout, context))
        _rescale_blocks(graph, program.key, context)
        return program


def _rescale_blocks(graph: fx.Graph, key: str, context: PassContext) -> None:
    nodes = {node.name: node for node in graph.nodes}
    for entry in context.plan.rescales(context.rank):
        if entry.kind != "block":
            continue
        units = context.analysis.blocks.units(entry.family)
        for unit, factor in zip(entry.units, entry.factors, strict=True):
            for number in units[unit]:
                for branch in context.analysis.blocks.blocks[number].branches[key]:
                    _insert(graph, nodes[branch.add], nodes[branch.operands[0]], 0, float(factor))


def contractions(node: fx.Node) -> Iterator[tuple[fx.Node, int]]:
    """Yields each activation that ``node`` contracts with a parameter, and the dimension that is summed over.

    Args:
        node: Any node.
    """
    find = lookup(node.target).contractions
    for activation, weight, dim in find(node) if find is not None else ():
        if _is_parameter(weight) and not _is_parameter(activation):
            yield activation, dim


def _is_parameter(node: fx.Node) -> bool:
    """Whether a node is a parameter, read directly, through a mask, or through views."""
    while node.op == "call_function" and len(node.all_input_nodes) >= 1:
        if node.target is not ops.mask_parameter and lookup(node.target).view is None:
            return False
        node = node.all_input_nodes[0]
    return node.op == "get_attr"


def _insert(graph: fx.Graph, node: fx.Node, operand: fx.Node, dim: int, factor: Factor) -> None:
    with graph.inserting_before(node):
        scaled = graph.call_function(ops.rescale, (operand, factor, dim))
    scaled.meta = inherited(operand)
    node.replace_input_with(operand, scaled)


def _axis_factor(layout: Layout, context: PassContext) -> Factor:
    """N / owners at each index of a dimension that the worker holds; one number if they are all equal."""
    factors = context.holdings.along(layout, spread(layout, _unit_factors(context)))
    return float(factors[0]) if (factors == factors[0]).all() else tuple(factors.tolist())


def _unit_factors(context: PassContext) -> dict[str, NDArray[np.float64]]:
    """For each cut axis, N / owners of each unit; 1 for units that the worker lacks, where it does not matter."""
    result = {}
    for entry in context.plan.rescales(context.rank):
        if entry.kind == "axis":
            per_unit = np.ones(len(context.plan.owners(entry.family)))
            per_unit[list(entry.units)] = entry.factors
            result[entry.family] = per_unit
    return result
