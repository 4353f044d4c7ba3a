"""The reference lowering of backward masking: parameters of full size with masked gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdp_compile import ops
from sdp_compile.ir.program import Program
from sdp_compile.passes.base import Pass, PassContext
from sdp_compile.passes.mask_parameters import through_masks
from sdp_compile.planning.families import Masking
from sdp_compile.planning.holdings import LoweringKind


@dataclass(frozen=True)
class MaskGradients(Pass):
    """Inserts `sdp_compile.ops.mask_gradient` after each parameter that the worker does not own whole.

    The outputs stay the same. The gradient of the elements that the worker does not own becomes 0.
    """

    name: ClassVar[str] = "mask_gradients"
    masking: ClassVar[Masking | None] = "backward"
    lowering: ClassVar[LoweringKind | None] = "masked"

    def run(self, program: Program, context: PassContext) -> Program:
        return through_masks(program, context, ops.mask_gradient)
