"""What a worker holds of a bucket: how its gradients lie in a flat buffer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from sdp_compile.errors import SDPError
from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.pairs import Pairs
from sdp_compile.runtime.sharding.gradient import local_gradient


@dataclass(frozen=True)
class Entry:
    """A piece of the parameter ``name``: where it lies in this worker's tensor, and in the flat buffer."""

    name: str
    region: Region
    place: slice


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

    def fill(
        self, flat: Tensor, parameters: Mapping[str, nn.Parameter], given: Mapping[str, Tensor], pairs: Pairs
    ) -> dict[str, Tensor] | None:
        """Fills a flat buffer with the gradients of the bucket, zeros where there are none, except for its excess.

        Args:
            flat: The buffer.
            parameters: The module's parameters by name, whose ``.grad`` is packed.
            given: Gradients by name to add to ``.grad``.
            pairs: Takes up the copies that are left to be made.

        Returns:
            The gradients by name if ``pairs`` makes all copies.

        Raises:
            SDPError: If a gradient is sparse.
        """
        gradients = {name: local_gradient(parameters[name]) for name in self.names}
        for name in self.names:
            for gradient in (given.get(name), gradients[name]):
                if gradient is not None and gradient.layout != torch.strided:
                    raise SDPError(
                        f"The gradient of {name!r} is sparse and cannot be averaged over slices. Build the "
                        "embedding with sparse=False."
                    )
        is_complete = not given
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
        return {name: gradient for name, gradient in gradients.items() if gradient is not None} if is_complete else None

    def unpack(self, flat: Tensor, part: slice, parameters: Mapping[str, nn.Parameter]) -> None:
        """Writes the elements in ``part`` of the flat buffer into ``.grad``, which it creates if needed."""
        first, last, _ = part.indices(self.numel)
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

    def dtype(self, parameters: Mapping[str, nn.Parameter]) -> torch.dtype:
        """Returns the dtype of the flat buffer: one that holds the values of all gradients, if none is asked for."""
        dtype = reduce(torch.promote_types, {parameters[name].dtype for name in self.names})
        return dtype if self._comm_dtype is None or dtype.is_complex else self._comm_dtype
