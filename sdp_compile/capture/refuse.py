"""Refuses models that cannot become subnetworks, before anything is captured."""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Container, Iterator

import torch
from torch import fx, nn

from sdp_compile.capture.diagnosis import located
from sdp_compile.capture.kinds import special_kind
from sdp_compile.errors import CaptureError
from sdp_compile.ir.effects import Effects
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
    if torch.is_inference_mode_enabled() or any(map(_is_inference, model.parameters())):
        raise CaptureError(
            f"{type(model).__name__} was built or is compiled within torch.inference_mode(), where tensors can never "
            "be trained. Build and compile it outside, and evaluate the compiled model within."
        )
    for path, module in model.named_modules():
        where = f"Module '{path}'" if path else "The model"
        if isinstance(module, torch.jit.ScriptModule):
            raise CaptureError(
                f"{where} was scripted or traced by torch.jit, so its Python code is gone. Pass the module that "
                "torch.jit.script or torch.jit.trace was given, with the same weights: scripted.state_dict() loads "
                "into it."
            )
        if any("training" in parts for parts in (module._modules, module._parameters, module._buffers)):
            raise CaptureError(f"{where} has a part named 'training', which hides the module's own mode. Rename it.")
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
    for name, tensor in _tensors(model):
        kind = special_kind(tensor)
        if kind is not None:
            raise CaptureError(
                f"'{name}' is a {kind}, which the state of a compiled model cannot hold. Make it dense and plain, or "
                "keep its parts, such as indices and values, as buffers and put it together in forward."
            )


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yields the parameters, buffers and tensor attributes of a model by name."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield f"{path}.{key}".lstrip("."), value


def _is_inference(parameter: nn.Parameter) -> bool:
    return not isinstance(parameter, nn.parameter.UninitializedParameter) and parameter.is_inference()


def refuse_counting(model: nn.Module) -> None:
    """Raises `CaptureError` if training steps of a BatchNorm depend on how many there were. The error names it."""
    for path, module in model.named_modules():
        counts = isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None
        if counts and module.track_running_stats and (module.training or not model.training):
            raise CaptureError(
                f"Module '{path}' is a {type(module).__name__} with momentum=None, as torch.optim.swa_utils.update_bn "
                "sets it: its average depends on a count, which a graph cannot hold. Give it a number. To estimate "
                "statistics again, call sdp.calibrate(model.full_model(), batches)."
            )


def refuse_collectives(graph: fx.Graph) -> None:
    """Raises `CaptureError` if the model calls a collective itself. The error names the line."""
    for node in graph.nodes:
        target = node.target
        if isinstance(target, torch._ops.OpOverload) and target.namespace in (
            "c10d",
            "_c10d_functional",
            "c10d_functional",
        ):
            raise CaptureError(
                f"The model calls a collective of its own ({target}){_at(node)}. Workers exchange gradients only: "
                "remove torch.distributed calls from the model."
            )


_aten = torch.ops.aten

_KEEP_VALUES = {
    _aten.detach_,
    _aten.squeeze_,
    _aten.unsqueeze_,
    _aten.t_,
    _aten.transpose_,
    _aten.swapaxes_,
    _aten.swapdims_,
    _aten.as_strided_,
}
"""Operators that change a tensor in place, but none of its values; ``torch.tensor()`` in forward calls the first."""


def refuse_written(graph: fx.Graph, constants: Container[str]) -> None:
    """Raises `CaptureError` if forward writes to a tensor that is no state of the model. The error names the line.

    Args:
        graph: The graph.
        constants: The names of the tensors that are no parameters or buffers.
    """
    for storage, nodes in Effects(graph).writers.items():
        writers = [node for node in nodes if getattr(node.target, "overloadpacket", None) not in _KEEP_VALUES]
        if writers and storage.op == "get_attr" and storage.target in constants:
            raise CaptureError(
                f"The model writes to a tensor that is neither a parameter nor a buffer{_at(writers[0])}. Register it "
                "as a buffer (self.register_buffer), which every call and every copy of the model then sees."
            )


# What export puts into a graph besides operators: arithmetic on sizes, parts of results, and autocast regions.
_PLAIN = (operator.__name__, "_operator", builtins.__name__, math.__name__, "torch", "torch.utils._sympy.functions")
_AUTOCAST = (torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast)


def refuse_transforms(graph: fx.Graph) -> None:
    """Raises `CaptureError` if the graph calls anything but operators, such as what torch.func does around them.

    Such calls change what the operators between them mean. The error names the line.
    """
    for node in graph.nodes:
        if node.op != "call_function" or isinstance(node.target, torch._ops.OpOverload) or node.target in _AUTOCAST:
            continue
        module, name = getattr(node.target, "__module__", "") or "", getattr(node.target, "__name__", str(node.target))
        if module in _PLAIN and node.target is not torch._C._set_grad_enabled:
            continue
        where = _at(node) or next(filter(None, map(_at, node.users)), "")
        if module.startswith("torch._functorch"):
            if "dual" in name or "jvp" in name:
                raise CaptureError(
                    f"The model computes derivatives in forward mode (torch.func.jvp, forward_ad){where}, which a "
                    "captured graph cannot hold. Write the derivative with ordinary tensor operators, or differentiate "
                    "outside of the model."
                )
            raise vmap_refusal(node, *node.users)
        raise CaptureError(
            f"The model calls {module}.{name}{where}, which a graph of tensor operators cannot hold. Write this part "
            "with ordinary tensor operators, or call it outside of the model."
        )


def vmap_refusal(*nodes: fx.Node) -> CaptureError:
    """Returns the error for a model that uses `torch.func.vmap`.

    Args:
        nodes: Nodes of the place, of which the first with a line is named.
    """
    where = next(filter(None, map(_at, nodes)), "")
    return CaptureError(
        f"The model uses torch.func.vmap, or an operator that is built on it{where}. A graph cannot be partitioned "
        "inside of it: write this part with batched operators, such as torch.bmm, torch.matmul or torch.einsum."
    )


def _at(node: fx.Node) -> str:
    line = located(source_line(node), module_path(node))
    return f" at {line}" if line else ""
