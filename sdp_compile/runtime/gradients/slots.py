"""Packs the gradients of a bucket into one flat buffer, and unpacks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.sharding.gradient import local_gradient

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _on_plain_tensors(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Spares a function the way through Python that gradients go at every operator."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **kwargs)

    return call


@dataclass(frozen=True)
class Entry:
    """A piece of the parameter ``name``: where it lies in this worker's tensor, and in the flat buffer."""

    name: str
    region: Region
    place: slice

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """The strides of the piece in the flat buffer."""
        result, step = [], 1
        for size in reversed(self.region.shape):
            result.append(step)
            step *= size
        return tuple(reversed(result))


class Slot:
    """What this worker holds of one bucket.

    Args:
        bucket: The bucket.
        holdings: Which tensors the worker holds.
        comm_dtype: The dtype in which gradients travel; by default their own.

    Attributes:
        bucket: The bucket.
        entries: Its pieces in order.
        numel: The number of their elements.
        names: The parameters that the pieces belong to.
    """

    def __init__(self, bucket: Bucket, holdings: Holdings, comm_dtype: torch.dtype | None) -> None:
        self.bucket, self._comm_dtype = bucket, comm_dtype
        entries, start = [], 0
        for piece in bucket.pieces:
            entries.append(Entry(piece.name, holdings.region(piece), slice(start, start + piece.numel)))
            start += piece.numel
        self.entries, self.numel = tuple(entries), start
        self.names = tuple(dict.fromkeys(entry.name for entry in entries))

    @_on_plain_tensors
    def pack(self, parameters: Mapping[str, nn.Parameter], length: int, given: Mapping[str, Tensor]) -> Tensor:
        """Returns a new flat buffer with the gradients of the bucket, zeros where there are none.

        Args:
            parameters: The module's parameters by name, whose ``.grad`` is packed.
            length: Elements of the buffer.
            given: Gradients by name to add to ``.grad``.

        Raises:
            SDPError: If a gradient is sparse.
        """
        first = parameters[self.names[0]]
        dtype = reduce(torch.promote_types, (parameters[name].dtype for name in self.names))
        if self._comm_dtype is not None and not dtype.is_complex:
            dtype = self._comm_dtype
        flat = torch.empty(length, dtype=dtype, device=first.device)
        flat[self.numel :].zero_()
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for entry in self.entries:
            out = flat.as_strided(entry.region.shape, entry.strides, entry.place.start)
            new, old = given.get(entry.name), local_gradient(parameters[entry.name])
            for gradient in (new, old):
                if gradient is not None and gradient.layout != torch.strided:
                    raise SDPError(
                        f"The gradient of {entry.name!r} is sparse and cannot be averaged over slices. Build the "
                        "embedding with sparse=False."
                    )
            if new is not None and old is not None:
                # Added in the gradient's dtype, as autograd does.
                out.copy_(entry.region.read(old) + entry.region.read(new))
            elif new is not None or old is not None:
                gradient = new if old is None else old
                assert gradient is not None
                if gradient.dtype == dtype and not entry.region.is_view:
                    entry.region.copy(gradient, out)
                else:
                    targets.append(out)
                    sources.append(entry.region.read(gradient))
            else:
                out.zero_()
        _copy_all(targets, sources)
        return flat

    @_on_plain_tensors
    def unpack(self, flat: Tensor, part: slice, parameters: Mapping[str, nn.Parameter]) -> None:
        """Writes the elements in ``part`` of the flat buffer into ``.grad``, which it creates if needed."""
        first, last, _ = part.indices(self.numel)
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for entry in self.entries:
            parameter = parameters[entry.name]
            if parameter.grad is None:
                if not parameter.requires_grad:  # frozen by the user since, on all ranks
                    continue
                parameter.grad = torch.zeros_like(parameter)
            start, stop = max(entry.place.start, first), min(entry.place.stop, last)
            if start >= stop:
                continue
            if entry.region.is_view and stop - start == entry.region.numel:
                targets.append(entry.region.read(parameter.grad))
                sources.append(flat.as_strided(entry.region.shape, entry.strides, flat.storage_offset() + start))
                continue
            values = flat[start:stop]
            if stop - start < entry.region.numel:
                whole = entry.region.copy(parameter.grad).view(-1)
                whole[start - entry.place.start : stop - entry.place.start] = values.to(whole.device, whole.dtype)
                values = whole
            entry.region.write(parameter.grad, values)
        _copy_all(targets, sources)


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies each source to its target: one call for all, because a call costs more than most copies."""
    if targets:
        torch._foreach_copy_(targets, sources)
