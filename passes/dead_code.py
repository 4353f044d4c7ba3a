"""Removes what has no effect on the rank's results or on its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdp_compile.ir.effects import Effects, live_nodes
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.passes.base import Pass, PassContext


@dataclass(frozen=True)
class DeadCode(Pass):
    """Keeps what results, the caller's tensors and the rank's own state depend on; placeholders always stay.

    An in-place operator counts when something that is kept reads that storage later. An update of a buffer that the
    rank does not hold, such as the batch counter of a dropped block, does not count; nor do random numbers that
    nobody uses.
    """

    name: ClassVar[str] = "dead_code"

    def run(self, program: Program, context: PassContext) -> Program:
        program = copy_program(program)
        live = live_nodes(Effects(program.graph), context.holdings.keeps)
        for node in reversed(list(program.graph.nodes)):
            if node not in live:
                program.graph.erase_node(node)
        program.graph.lint()
        return program
