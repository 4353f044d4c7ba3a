"""The reference lowering of backward masking: full-size parameters whose gradients are masked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sdp_compile.ir.program import Program
from sdp_compile.ops import inserted as ops
from sdp_compile.passes.base import Lowering, Pass
from sdp_compile.passes.mask_parameters import through_masks


@dataclass(frozen=True)
class MaskGradients(Pass):
    """Each parameter that the worker owns in part is read through `sdp_compile.ops.mask_gradient`.

    The graph computes what it computed; the gradient of what the worker does not own is 0.
    """

    name: ClassVar[str] = "mask_gradients"

    def run(self, program: Program, context: Lowering) -> Program:
        return through_masks(program, context, ops.mask_gradient)
