"""Passes: each one rewrites a program for one worker. See `Pass`; `pipeline` gives the order in which they run."""

if __name__ != "sdp_compile.passes":
    raise ImportError(
        "Import this folder as sdp_compile.passes. 'import passes' would load every module a second time, with classes "
        "that differ from those of the package."
    )

from sdp_compile.passes.base import Pass, PassContext, inherited
from sdp_compile.passes.bypass_blocks import BypassBlocks
from sdp_compile.passes.dead_code import DeadCode
from sdp_compile.passes.mask_gradients import MaskGradients
from sdp_compile.passes.mask_parameters import MaskParameters
from sdp_compile.passes.pipelines import (
    Passes,
    bucket_bytes_of,
    pipeline,
    reducing,
    register_pass,
    resolve_pipeline,
    with_pass,
)
from sdp_compile.passes.rescale import Rescale
from sdp_compile.passes.slice_parameters import SliceParameters
from sdp_compile.passes.split_parameters import SplitParameters
from sdp_compile.passes.sync_gradients import SyncGradients
from sdp_compile.passes.verify import Verify
from sdp_compile.passes.zero_blocks import ZeroBlocks

__all__ = [
    "BypassBlocks",
    "DeadCode",
    "MaskGradients",
    "MaskParameters",
    "Pass",
    "PassContext",
    "Passes",
    "Rescale",
    "SliceParameters",
    "SplitParameters",
    "SyncGradients",
    "Verify",
    "ZeroBlocks",
    "bucket_bytes_of",
    "inherited",
    "pipeline",
    "reducing",
    "register_pass",
    "resolve_pipeline",
    "with_pass",
]
