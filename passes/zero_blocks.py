"""The reference lowering of dropped blocks: they are computed, and zeros are added instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sdp_compile.ir.program import Program, copy_program
from sdp_compile.passes.base import Pass, PassContext
from sdp_compile.passes.branches import call_like, dropped_blocks, outputs_of

aten = torch.ops.aten


@dataclass(frozen=True)
class ZeroBlocks(Pass):
    """Replaces ``x + f(x)`` by ``x + 0`` where the worker does not own ``f``.

    ``f(x)`` is still computed, and its gradient is 0. Nothing of it reaches the sum, even if it is infinite or NaN.

    Raises:
        LoweringError: If an earlier pass removed or renamed the nodes of a branch.
    """

    name: ClassVar[str] = "zero_blocks"

    def run(self, program: Program, context: PassContext) -> Program:
        blocks = dropped_blocks(context)
        if not blocks:
            return program
        program = copy_program(program)
        for add, operand in outputs_of(program, blocks):
            with program.graph.inserting_before(add):
                # `where` rather than `* 0`: inf * 0 is NaN. A tensor made from the operand follows it to its device.
                never = call_like(operand, aten.new_zeros.default, (operand, []), {"dtype": torch.bool})
                zeros = call_like(operand, aten.where.ScalarOther, (never, operand, 0))
            add.replace_input_with(operand, zeros)
        return program
