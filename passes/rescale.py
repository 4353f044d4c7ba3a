"""Keep the expected size of a sum over cut units that some workers lack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from sdp_compile import ops
from sdp_compile.ir.program import Mode, Program, copy_program
from sdp_compile.passes.base import Pass, PassContext, inherited
from sdp_compile.structure.layout import Layout, families, restrict, spread

Factor: TypeAlias = float | tuple[float, ...]

aten = torch.ops.aten

_LINEAR = {aten.linear.default}
_CONVOLUTIONS = {
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
}
_PRODUCTS = {aten.matmul.default, aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default}


@dataclass(frozen=True)
class Rescale(Pass):
    """In training, multiplies by N / owners the activation that is contracted with a cut parameter."""

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
        _rescale_blocks(graph, program.mode, context)
        graph.lint()
        return program


def _rescale_blocks(graph: fx.Graph, mode: Mode, context: PassContext) -> None:
    nodes = {node.name: node for node in graph.nodes}
    for entry in context.plan.rescales(context.rank):
        if entry.kind != "block":
            continue
        units = context.analysis.blocks.units(entry.family)
        for unit, factor in zip(entry.units, entry.factors, strict=True):
            for number in units[unit]:
                for branch in context.analysis.blocks.blocks[number].branches[mode]:
                    _insert(graph, nodes[branch.add], nodes[branch.operand], 0, float(factor))


def contractions(node: fx.Node) -> Iterator[tuple[fx.Node, int]]:
    """The activations that ``node`` contracts with a parameter, and the dimension that is summed over."""
    target: Any = node.target
    operands = [a for a in node.args if isinstance(a, fx.Node) and isinstance(a.meta.get("val"), torch.Tensor)]
    if target in _LINEAR and _is_parameter(operands[1]) and not _is_parameter(operands[0]):
        yield operands[0], _ndim(operands[0]) - 1
    elif target in _CONVOLUTIONS and _is_parameter(operands[1]) and not _is_parameter(operands[0]):
        yield operands[0], _ndim(operands[0]) - _ndim(operands[1]) + 1
    elif target in _PRODUCTS:
        left, right = operands[-2:]
        if _is_parameter(right) and not _is_parameter(left):
            yield left, _ndim(left) - 1
        elif _is_parameter(left) and not _is_parameter(right):
            yield right, max(_ndim(right) - 2, 0)


def _ndim(node: fx.Node) -> int:
    return int(node.meta["val"].ndim)


def _is_parameter(node: fx.Node) -> bool:
    """Whether a node is a parameter, read directly, through a mask, or through views."""
    while node.op == "call_function" and len(node.all_input_nodes) >= 1:
        if node.target not in {aten.t.default, aten.transpose.int, aten.permute.default, ops.mask_parameter}:
            return False
        node = node.all_input_nodes[0]
    return node.op == "get_attr"


def _insert(graph: fx.Graph, node: fx.Node, operand: fx.Node, dim: int, factor: Factor) -> None:
    with graph.inserting_before(node):
        scaled = graph.call_function(ops.rescale, (operand, factor, dim))
    scaled.meta = inherited(operand)
    node.replace_input_with(operand, scaled)


def _axis_factor(layout: Layout, context: PassContext) -> Factor:
    """N / owners at each index that the worker holds of a dimension; one number where they are all equal."""
    factors = context.holdings.along(layout, spread(layout, _unit_factors(context)))
    return float(factors[0]) if (factors == factors[0]).all() else tuple(factors.tolist())


def _unit_factors(context: PassContext) -> dict[str, NDArray[np.float64]]:
    """For each cut axis N / owners of all its units; those that the worker lacks do not matter and get 1."""
    result = {}
    for entry in context.plan.rescales(context.rank):
        if entry.kind == "axis":
            per_unit = np.ones(len(context.plan.owners(entry.family)))
            per_unit[list(entry.units)] = entry.factors
            result[entry.family] = per_unit
    return result
