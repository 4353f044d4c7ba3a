"""Prepares a model to be captured again after its tensors, its inputs or autocast changed dtype."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn

from sdp_compile.capture.clone import canonical_names, clone, named_state, to_meta
from sdp_compile.capture.inputs import Call
from sdp_compile.ir.program import FORWARD, Capture, Precision, StateTensor


def autocast_dtype(device: str) -> torch.dtype | None:
    """Returns the dtype of the active `torch.autocast` for a device type, or None if it is off."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


@contextlib.contextmanager
def autocast_of(precision: Precision, device: torch.device) -> Iterator[None]:
    """Sets the autocast state that a graph of ``precision`` is captured and run in."""
    if precision.autocast == autocast_dtype(device.type):
        yield
    else:
        with torch.autocast(device.type, precision.autocast, enabled=precision.autocast is not None):
            yield


def call_in(
    precision: Precision, capture: Capture, shapes: Sequence[Sequence[int]] | None = None, method: str = FORWARD
) -> Call:
    """Returns the captured call, on the meta device, with inputs of the dtypes of ``precision``.

    Args:
        precision: The dtypes.
        capture: The capture whose call it is.
        shapes: The shapes of the inputs; by default those of the capture.
        method: The method that is called.
    """
    dtypes = iter(precision.inputs)
    call = Call(*capture.examples[method])
    if shapes is None:
        return call.map_tensors(lambda tensor: tensor.to(next(dtypes)))
    sizes = iter(shapes)
    return call.map_tensors(lambda _: torch.empty(tuple(next(sizes)), dtype=next(dtypes), device="meta"))


def skeleton_in(
    precision: Precision,
    capture: Capture,
    device: torch.device,
    values: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> nn.Module:
    """Returns the captured model's skeleton with parameters and buffers of the dtypes of ``precision``.

    Buffers on ``device`` keep their values, and those in ``values`` get them. All other tensors are on the meta device.
    """
    canonical = canonical_names(capture.skeleton)
    names = {id(tensor): canonical[name] for name, tensor in named_state(capture.skeleton)}

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        dtype = precision.cast(names[id(tensor)], tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(to_meta(tensor).detach().to(dtype), tensor.requires_grad)
        if names[id(tensor)] in values:
            return values[names[id(tensor)]].detach().clone().view(tensor.shape)
        return (tensor if tensor.device == device else to_meta(tensor)).to(dtype)

    return clone(capture.skeleton, cast)


def casts_of(
    captured: Mapping[str, StateTensor], tensors: Mapping[str, torch.Tensor]
) -> tuple[tuple[torch.dtype | str, torch.dtype], ...]:
    """Returns how tensors have been converted since they were captured, for `Precision`.

    Args:
        captured: What they were then, by name.
        tensors: What they are now.
    """
    now = {
        name: tensor.dtype for name, tensor in tensors.items() if name in captured and captured[name].kind != "constant"
    }
    counts = Counter((captured[name].dtype, dtype) for name, dtype in now.items())
    usual: dict[torch.dtype, torch.dtype] = {}
    for (before, after), _count in counts.most_common():
        usual.setdefault(before, after)
    casts: list[tuple[torch.dtype | str, torch.dtype]] = [(old, new) for old, new in usual.items() if old != new]
    casts += [(name, dtype) for name, dtype in now.items() if dtype != usual[captured[name].dtype]]
    return tuple(casts)
