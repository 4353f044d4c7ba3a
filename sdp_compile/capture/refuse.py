"""Refuses models that cannot become subnetworks, before anything is captured."""

from __future__ import annotations

import torch
from torch import fx, nn

from sdp_compile.capture.diagnosis import located
from sdp_compile.errors import CaptureError
from sdp_compile.ir.source import module_path, source_line

_WRAPPERS = {
    "DistributedDataParallel": "it would reduce gradients over all workers; sdp.compile() replaces it",
    "FullyShardedDataParallel": "its parameters are already split; sdp.compile() replaces it",
    "FSDPModule": "its parameters are already split; sdp.compile() replaces it",
    "DataParallel": "it runs replicas in one process; sdp.compile() replaces it",
    "OptimizedModule": "compile the result of sdp.compile() instead: torch.compile(sdp.compile(model, ...))",
    "SDPModule": "it is already a subnetwork",
}


def refuse(model: nn.Module) -> None:
    """Raises `CaptureError` if a module communicates or changes gradients itself. The error names the module."""
    for path, module in model.named_modules():
        where = f"Module '{path}'" if path else "The model"
        kind = next((base.__name__ for base in type(module).__mro__ if base.__name__ in _WRAPPERS), None)
        if kind is not None:
            raise CaptureError(f"{where} is a {kind}: {_WRAPPERS[kind]}. Pass the bare model.")
        if isinstance(module, nn.SyncBatchNorm):
            raise CaptureError(
                f"{where} is a SyncBatchNorm, which averages statistics over workers, but these compute different "
                "channels. Use BatchNorm; sdp.calibrate() re-estimates the statistics of the full model."
            )
        if module._backward_hooks or module._backward_pre_hooks:
            raise CaptureError(
                f"{where} ({type(module).__name__}) has a backward hook, which a captured graph would lose. Remove it "
                "before compiling, and change gradients after backward() instead."
            )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise CaptureError(f"Parameter '{name}' has no shape yet. Run the lazy model once before compiling it.")
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            raise CaptureError(
                f"Parameter '{name}' has a gradient hook, which its slices would not have. Remove it before compiling "
                "and register it on the compiled module's parameter."
            )
    for name, buffer in model.named_buffers():
        if isinstance(buffer, nn.parameter.UninitializedBuffer):
            raise CaptureError(f"Buffer '{name}' has no shape yet. Run the lazy model once before compiling it.")


def refuse_collectives(graph: fx.Graph) -> None:
    """Raises `CaptureError` if the model calls a collective itself. The error names the line."""
    for node in graph.nodes:
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and target.namespace in (
            "c10d",
            "_c10d_functional",
            "c10d_functional",
        ):
            line = located(source_line(node), module_path(node))
            where = f" at {line}" if line else ""
            raise CaptureError(
                f"The model calls a collective of its own ({target}){where}. Workers exchange gradients only: "
                "remove torch.distributed calls from the model."
            )
