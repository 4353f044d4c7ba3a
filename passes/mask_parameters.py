"""The reference lowering of forward masking: full-size parameters, masked where they enter the graph."""

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
    """Reads each parameter that the worker owns in part through `sdp_compile.ops.mask_parameter`.

    A mask is stored per cut dimension (the mask of a parameter is their outer product), never at full size.
    """

    name: ClassVar[str] = "mask_parameters"
    masking: ClassVar[Masking | None] = "forward"
    lowering: ClassVar[LoweringKind | None] = "masked"

    def run(self, program: Program, context: PassContext) -> Program:
        return through_masks(program, context, ops.mask_parameter)


def through_masks(program: Program, context: PassContext, function: Callable[..., Tensor]) -> Program:
    """Returns the program with each parameter that has masks read through ``function(parameter, *masks)``."""
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
    graph.lint()
    return program
