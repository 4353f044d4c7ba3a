"""The reference lowering of backward masking: full-size parameters whose gradients are masked."""

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
    """Reads each parameter that the worker owns in part through `sdp_compile.ops.mask_gradient`.

    The graph computes what it computed; the gradient of what the worker does not own is 0.
    """

    name: ClassVar[str] = "mask_gradients"
    masking: ClassVar[Masking | None] = "backward"
    lowering: ClassVar[LoweringKind | None] = "masked"

    def run(self, program: Program, context: PassContext) -> Program:
        return through_masks(program, context, ops.mask_gradient)
