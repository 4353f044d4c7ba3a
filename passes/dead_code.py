"""Removes nodes that have no effect on the worker's results or state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdp_compile.ir.effects import remove_dead_code
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.passes.base import Pass, PassContext


@dataclass(frozen=True)
class DeadCode(Pass):
    """Removes all nodes but placeholders and those that outputs, the caller's tensors or the worker's state depend on.

    An in-place operator stays if a node that stays reads the same storage later. An update of a buffer that the worker
    does not hold, such as the batch counter of a dropped block, goes, and so do random numbers that nobody reads.
    """

    name: ClassVar[str] = "dead_code"

    def run(self, program: Program, context: PassContext) -> Program:
        program = copy_program(program)
        remove_dead_code(program.graph, context.holdings.keeps)
        return program
