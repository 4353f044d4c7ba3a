"""Packs the gradients of a bucket into one flat buffer, and unpacks it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.pairs import Pairs
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


@dataclass(frozen=True)
class _Packed:
    """What was packed last, to be unpacked by the same views."""

    flat: Tensor
    gradients: Mapping[str, Tensor]
    pairs: Pairs

    def fits(self, flat: Tensor, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Whether the views are of this buffer and of the current gradients."""
        is_same = flat.dtype == self.flat.dtype and flat.shape == self.flat.shape
        return (
            is_same
            and flat.is_set_to(self.flat)
            and all(parameters[name].grad is gradient for name, gradient in self.gradients.items())
        )


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
        self._sizes = [piece.numel for piece in bucket.pieces]
        self._packed: _Packed | None = None

    def forget(self) -> None:
        """Drops the views of what was packed last, which keep its memory in use until it is unpacked."""
        self._packed = None

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
        flat = torch.empty(length, dtype=self._dtype(parameters), device=parameters[self.names[0]].device)
        if length > self.numel:
            flat[self.numel :].zero_()
        gradients = {name: local_gradient(parameters[name]) for name in self.names}
        for name in self.names:
            for gradient in (given.get(name), gradients[name]):
                if gradient is not None and gradient.layout != torch.strided:
                    raise SDPError(
                        f"The gradient of {name!r} is sparse and cannot be averaged over slices. Build the "
                        "embedding with sparse=False."
                    )
        pairs, is_complete = Pairs(), not given
        for entry, chunk in zip(self.entries, flat[: self.numel].split_with_sizes(self._sizes), strict=True):
            region, new, old = entry.region, given.get(entry.name), gradients[entry.name]
            gradient = new if old is None else old
            if gradient is None:
                chunk.zero_()
                is_complete = False
            elif new is None or old is None:
                pairs.add(region, gradient, chunk)
            else:  # added in the gradient's dtype, as autograd does
                chunk.view(region.shape).copy_(region.read(old) + region.read(new))
        pairs.pack()
        held = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        self._packed = _Packed(flat, held, pairs) if is_complete else None
        return flat

    @_on_plain_tensors
    def unpack(self, flat: Tensor, part: slice, parameters: Mapping[str, nn.Parameter]) -> None:
        """Writes the elements in ``part`` of the flat buffer into ``.grad``, which it creates if needed."""
        first, last, _ = part.indices(self.numel)
        packed, self._packed = self._packed, None
        if packed is not None and (first, last) == (0, self.numel) and packed.fits(flat, parameters):
            packed.pairs.unpack()
            return
        pairs = Pairs()
        for entry in self.entries:
            parameter = parameters[entry.name]
            if parameter.grad is None:
                if not parameter.requires_grad:  # frozen by the user since, on all ranks
                    continue
                parameter.grad = torch.zeros_like(parameter)
            start, stop = max(entry.place.start, first), min(entry.place.stop, last)
            if start >= stop:
                continue
            values = flat[start:stop]
            if stop - start < entry.region.numel:
                whole = entry.region.copy(parameter.grad).view(-1)
                whole[start - entry.place.start : stop - entry.place.start] = values.to(whole.device, whole.dtype)
                values = whole
            pairs.add(entry.region, parameter.grad, values)
        pairs.unpack()

    def _dtype(self, parameters: Mapping[str, nn.Parameter]) -> torch.dtype:
        """Returns the dtype of the flat buffer: one that holds the values of all gradients, if none is asked for."""
        dtype = reduce(torch.promote_types, {parameters[name].dtype for name in self.names})
        return dtype if self._comm_dtype is None or dtype.is_complex else self._comm_dtype
