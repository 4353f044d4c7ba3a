"""Passes: each rewrites one program for one rank, see `Pass`; `pipeline` is the order in which they run."""

if __name__ != "sdp_compile.passes":
    raise ImportError(
        "This folder is imported as sdp_compile.passes. A bare 'import passes' would load every module a second time, "
        "with classes that are not the same as the package's."
    )

from sdp_compile.ir.program import Program
from sdp_compile.passes.base import Lowering, LoweringKind, Pass
from sdp_compile.passes.dead_code import DeadCode
from sdp_compile.passes.drop_blocks import DropBlocks
from sdp_compile.passes.mask_gradients import MaskGradients
from sdp_compile.passes.mask_parameters import MaskParameters
from sdp_compile.passes.rescale import Rescale
from sdp_compile.passes.slice_parameters import SliceParameters
from sdp_compile.passes.split_parameters import SplitParameters
from sdp_compile.passes.sync_gradients import SyncGradients
from sdp_compile.passes.verify import Verify
from sdp_compile.planning.families import Masking

__all__ = [
    "DeadCode",
    "DropBlocks",
    "Lowering",
    "LoweringKind",
    "MaskGradients",
    "MaskParameters",
    "Pass",
    "Rescale",
    "SliceParameters",
    "SplitParameters",
    "SyncGradients",
    "Verify",
    "lower",
    "pipeline",
]


def pipeline(lowering: LoweringKind, bucket_bytes: int, masking: Masking = "forward") -> tuple[Pass, ...]:
    """The passes that make a worker's program of a captured one, in order."""
    if masking == "backward":
        own: Pass = SplitParameters() if lowering == "sliced" else MaskGradients()
        return (own, DeadCode(), SyncGradients(bucket_bytes), Verify())
    reduce: Pass = SliceParameters() if lowering == "sliced" else MaskParameters()
    return (Rescale(), DropBlocks(), reduce, DeadCode(), SyncGradients(bucket_bytes), Verify())


def lower(program: Program, context: Lowering, passes: tuple[Pass, ...]) -> Program:
    """Runs ``passes`` on a program."""
    for step in passes:
        program = step.run(program, context)
    return program
