"""Makes the graph compute with the slices of parameters that a worker owns."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import torch
from torch import fx

from sdp_compile.ir.program import Program, copy_program
from sdp_compile.ir.schema import get_argument, set_argument
from sdp_compile.ops.narrow import owned_part
from sdp_compile.ops.widening import widen
from sdp_compile.passes.base import Pass, PassContext, inherited
from sdp_compile.planning.families import Masking
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.structure.axis_analysis import NodeRewrites
from sdp_compile.structure.layout import Layout, families, kept_size, restrict
from sdp_compile.structure.operators.parts import Channels


@dataclass(frozen=True)
class SliceParameters(Pass):
    """Rewrites every size, group count and slice bound that depends on a cut axis.

    A value that an operator derives from the size of a cut axis, such as the scale of attention, is written out as an
    argument. Parameters keep their names, and the module holds the worker's slices under them. Free sizes in the graph
    are those of the full model: they are converted where an operator takes or gives a size of a sliced tensor.
    """

    name: ClassVar[str] = "slice_parameters"
    masking: ClassVar[Masking | None] = "forward"
    lowering: ClassVar[LoweringKind | None] = "sliced"

    def run(self, program: Program, context: PassContext) -> Program:
        kept = context.holdings.kept_units
        program = copy_program(program)
        for node in list(program.graph.nodes):
            if node.target is torch.ops.aten.sym_size.int:
                _restore_full_size(node, kept)
            rewrites = node.meta.get("rewrites")
            if rewrites is not None:
                _rewrite(node, rewrites, kept)
                _fit(node, rewrites, context)
        return program


def _scale(dims: tuple[Layout, ...], kept: Mapping[str, int]) -> tuple[int, int]:
    """The sum of the sizes of ``dims`` that a worker keeps, and the sum of their full sizes."""
    return sum(kept_size(dim, kept) for dim in dims), sum(dim.size for dim in dims)


def _rewrite(node: fx.Node, rewrites: NodeRewrites, kept: Mapping[str, int]) -> None:
    scales = [(argument, index, *_scale(dims, kept)) for argument, index, dims in rewrites.resizes]
    changed = [scale for scale in scales if scale[2] != scale[3]]
    pinned = {name: value for name, value in rewrites.pins.items() if rewrites.operator is None}
    for name, value in pinned.items():
        set_argument(node, name, value)
    if rewrites.operator is not None and not scales and kept:  # another operator with the same arguments
        node.target = rewrites.operator
    if not changed:
        return
    if rewrites.operator is not None:  # resizes and pins give every argument but the tensor
        arguments: dict[str, Any] = dict(rewrites.pins)
        for argument, _, mine, _full in scales:
            arguments.setdefault(argument, []).append(mine)
        node.target, node.args, node.kwargs = rewrites.operator, (node.args[0],), arguments
        return
    for argument, index, mine, full in changed:
        value = get_argument(node, argument)
        if index is None:
            set_argument(node, argument, _resized(node, value, mine, full))
        else:
            items = list(value)
            items[index] = _resized(node, items[index], mine, full)
            set_argument(node, argument, items)


def _fit(node: fx.Node, rewrites: NodeRewrites, context: PassContext) -> None:
    """Fits operands to what the node computes with.

    Puts zeros where the worker lacks units that the node needs, and takes the worker's units of what all hold whole.
    """
    for function, fits in ((widen, rewrites.widens), (owned_part, rewrites.narrows)):
        for argument, dim, layout in fits:
            layout = restrict(layout, context.holdings.kept_units.keys())
            if not families(layout):
                continue
            held = set(context.holdings.along(layout, np.arange(layout.size, dtype=np.float64)).astype(int).tolist())
            runs = Channels.of([index in held for index in range(layout.size)]).runs
            operand = get_argument(node, argument)
            with node.graph.inserting_before(node):
                fitted = node.graph.call_function(function, (operand, dim, runs))
            fitted.meta = {key: value for key, value in inherited(operand).items() if key != "layouts"}
            set_argument(node, argument, fitted)


def _resized(node: fx.Node, value: Any, mine: int, full: int) -> Any:
    if isinstance(value, fx.Node):
        ratio = Fraction(mine, full)
        with node.graph.inserting_before(node):
            scaled = node.graph.call_function(operator.mul, (value, ratio.numerator))
            return node.graph.call_function(operator.floordiv, (scaled, ratio.denominator))
    return value if value == -1 else value * mine // full  # `full` is a placeholder where sizes are free


def _restore_full_size(node: fx.Node, kept: Mapping[str, int]) -> None:
    tensor, dim = node.args
    layouts = tensor.meta.get("layouts")  # type: ignore[union-attr]
    if not layouts:
        return
    mine, full = _scale((layouts[dim],), kept)
    if mine == full:
        return
    ratio = Fraction(full, mine)
    users = list(node.users)
    with node.graph.inserting_after(node):
        scaled = node.graph.call_function(operator.mul, (node, ratio.numerator))
    with node.graph.inserting_after(scaled):
        restored = node.graph.call_function(operator.floordiv, (scaled, ratio.denominator))
    for user in users:
        user.replace_input_with(node, restored)
