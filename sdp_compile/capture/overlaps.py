"""Refuses models in which a change of one tensor would change another: compiled, each has memory of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import nn

from sdp_compile.capture.clone import named_state
from sdp_compile.errors import CaptureError
from sdp_compile.ir.effects import Effects
from sdp_compile.ir.program import Program


def refuse_overlaps(model: nn.Module, programs: Iterable[Program]) -> None:
    """Raises `CaptureError` if two tensors of a model share memory that training or forward may change.

    Views of one tensor that show different elements of it, or that nothing writes to, are as good as copies.

    Args:
        model: The model.
        programs: Its graphs, which say what forward writes to.
    """
    written = {name for program in programs for name in _written(program)}
    seen: dict[int, list[_Held]] = {}
    for name, tensor in named_state(model):
        if tensor.layout is not torch.strided or not tensor.numel():
            continue
        held = _Held(name, tensor)
        others = seen.setdefault(tensor.untyped_storage()._cdata, [])
        for other in others:
            changes = any(one.name in written or isinstance(one.tensor, nn.Parameter) for one in (held, other))
            if changes and tensor is not other.tensor and _overlap(held, other):
                raise CaptureError(
                    f"{name!r} and {other.name!r} of {type(model).__name__} are different tensors in the same memory, "
                    "so a write to one changes the other. Register one tensor under both names, or copy it with "
                    "clone()."
                )
        others.append(held)


@dataclass(frozen=True)
class _Held:
    name: str
    tensor: torch.Tensor

    @property
    def span(self) -> tuple[int, int]:
        """The first byte in its storage, and the one after the last."""
        tensor = self.tensor
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        first = tensor.storage_offset() * tensor.dtype.itemsize
        return int(first), int(first + reach * tensor.dtype.itemsize)

    def mark(self, flags: NDArray[np.bool_], start: int, width: int) -> NDArray[np.bool_]:
        """Returns the view of ``flags``, one for every ``width`` bytes from ``start``, that shows this tensor."""
        tensor = self.tensor
        return as_strided(
            flags[(self.span[0] - start) // width :],
            tuple(tensor.shape),
            tuple(stride * tensor.dtype.itemsize // width for stride in tensor.stride()),
        )


def _overlap(one: _Held, other: _Held) -> bool:
    """Whether two tensors of one storage show a byte of it both."""
    (start, stop), (first, last) = one.span, other.span
    if stop <= first or last <= start:
        return False
    width = one.tensor.dtype.itemsize
    if width != other.tensor.dtype.itemsize:
        return True  # seen as other types, neither shows every second element of the other
    flags = np.zeros((max(stop, last) - min(start, first)) // width, dtype=np.bool_)
    one.mark(flags, min(start, first), width)[...] = True
    return bool(other.mark(flags, min(start, first), width).any())


def _written(program: Program) -> list[str]:
    return [str(storage.target) for storage in Effects(program.graph).writers if storage.op == "get_attr"]
