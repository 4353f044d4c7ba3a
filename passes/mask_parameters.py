"""The reference lowering of forward masking: parameters of full size, masked where they enter the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdp_compile import ops
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.passes.base import Pass, PassContext, inherited
from sdp_compile.planning.families import Masking
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.planning.masks import mask_name


@dataclass(frozen=True)
class MaskParameters(Pass):
    """Inserts `sdp_compile.ops.mask_parameter` after each parameter that the worker does not own whole.

    Elements that the worker does not own count as 0, and their gradient is 0. A parameter has one mask for each
    dimension that is cut; their outer product, the mask of all its elements, is never stored.
    """

    name: ClassVar[str] = "mask_parameters"
    masking: ClassVar[Masking | None] = "forward"
    lowering: ClassVar[LoweringKind | None] = "masked"

    def run(self, program: Program, context: PassContext) -> Program:
        return through_masks(program, context, ops.mask_parameter)


def through_masks(program: Program, context: PassContext, function: Callable[..., Tensor]) -> Program:
    """Returns the program with ``function(parameter, *masks)`` in the place of each parameter that has masks.

    Args:
        program: The program, which is not changed.
        context: The worker, whose holdings have the masks.
        function: Takes a parameter and its masks, one for each cut dimension, and returns a tensor of its shape.
    """
    program = copy_program(program)
    graph = program.graph
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        name = str(node.target)
        candidates = [mask_name(name, dim) for dim in range(len(context.state[name].shape))]
        masks = [mask for mask in candidates if mask in context.holdings.constants]
        if not masks:
            continue
        users = list(node.users)
        with graph.inserting_after(node):
            masked = graph.call_function(function, (node,))
        masked.meta = inherited(node)
        with graph.inserting_before(masked):
            sources = [graph.get_attr(mask) for mask in masks]
        for source in sources:
            source.meta["val"] = context.holdings.constants[str(source.target)]
        masked.args = (node, *sources)
        for user in users:
            user.replace_input_with(node, masked)
    return program
