"""What a check calls besides the example inputs: a second time, and with other sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdp_compile.capture.inputs import Call
from sdp_compile.ir.program import InputSpec

_MOST_SIZES = 3


@dataclass(frozen=True)
class Trial:
    """One call to compare.

    Attributes:
        name: What it is called in the result.
        call: The arguments.
        calls: How often it is called; the last call is compared.
        is_optional: Whether it is left out if the original does not run with it.
    """

    name: str
    call: Call
    calls: int = 1
    is_optional: bool = False


def trials(call: Call, inputs: Sequence[InputSpec]) -> list[Trial]:
    """Returns the call, a second call, and calls in which one free size is larger by 1.

    Args:
        call: The call, in which all tensors have values.
        inputs: The captured tensor inputs, in the order of the call's tensors.
    """
    found = [Trial("example inputs", call), Trial("second call", call, calls=2)]
    sizes = {
        (dim, spec.example[dim]): None for spec in inputs for dim, size in enumerate(spec.dims) if isinstance(size, str)
    }
    for dim, size in list(sizes)[:_MOST_SIZES]:
        larger = _larger(call, inputs, dim, size)
        text = ", ".join(f"{spec.name} {list(t.shape)}" for spec, t in zip(inputs, larger.tensors, strict=True))
        found.append(Trial(text, larger, is_optional=True))
    return found


def _larger(call: Call, inputs: Sequence[InputSpec], dim: int, size: int) -> Call:
    """Repeats the last entry, slightly changed, of all inputs that have this free size in this dimension.

    Capture does not say of all sizes that they must agree: those of one batch stand in one dimension.
    """
    specs = iter(inputs)
    generator = torch.Generator().manual_seed(1)

    def extended(tensor: Tensor) -> Tensor:
        spec = next(specs)
        if dim >= tensor.ndim or spec.example[dim] != size or not isinstance(spec.dims[dim], str):
            return tensor
        last = tensor.narrow(dim, tensor.shape[dim] - 1, 1)
        if last.is_floating_point():
            last = last + 0.1 * torch.randn(last.shape, generator=generator, dtype=last.dtype)
        return torch.cat([tensor, last], dim)

    return call.map_tensors(extended)
