"""What a worker holds of a bucket: how its gradients lie in memory that travels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import chain

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
    """A piece of the parameter ``name``, and where it lies in this worker's tensor."""

    name: str
    region: Region


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
        self.entries = tuple(Entry(piece.name, holdings.region(piece)) for piece in bucket.pieces)
        self.names = tuple(dict.fromkeys(entry.name for entry in self.entries))
        sizes = [piece.numel for piece in bucket.pieces]
        self.numel = sum(sizes)
        self._torn = cache(lambda lengths: _torn(sizes, lengths))

    def fill(
        self,
        stretches: Sequence[Tensor],
        parameters: Mapping[str, nn.Parameter],
        given: Mapping[str, Tensor],
        pairs: Pairs,
    ) -> dict[str, Tensor] | None:
        """Fills memory with the gradients of the bucket, zeros where there are none and in the excess.

        Args:
            stretches: The memory, vectors that the bucket fills one after the other.
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
        *places, zeros = self._places(stretches)
        for entry, chunks in zip(self.entries, places, strict=True):
            region, new, old = entry.region, given.get(entry.name), gradients[entry.name]
            gradient = new if old is None else old
            if gradient is None:
                zeros += chunks
                is_complete = False
            elif new is None or old is None:
                pairs.add(region, gradient, *chunks)
            else:  # added in the gradient's dtype, as autograd does
                total = (region.read(old) + region.read(new)).reshape(-1)
                for chunk, part in zip(chunks, total.split_with_sizes([len(one) for one in chunks]), strict=True):
                    chunk.copy_(part)
        if zeros:
            torch._foreach_zero_(zeros)
        return {name: gradient for name, gradient in gradients.items() if gradient is not None} if is_complete else None

    def unpack(self, stretches: Sequence[Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
        """Writes what `fill` has filled into ``.grad``, which it creates if needed."""
        pairs = Pairs()
        for entry, chunks in zip(self.entries, self._places(stretches), strict=False):
            parameter = parameters[entry.name]
            if parameter.grad is None:
                if not parameter.requires_grad:  # frozen by the user since, on all ranks
                    continue
                parameter.grad = torch.zeros_like(parameter)
            pairs.add(entry.region, parameter.grad, *chunks)
        pairs.unpack()

    def _places(self, stretches: Sequence[Tensor]) -> list[list[Tensor]]:
        """Returns the places of each entry, and at last the excess."""
        sizes, entries = self._torn(tuple(map(len, stretches)))
        result: list[list[Tensor]] = [[] for _ in range(len(self.entries) + 1)]
        parts = chain.from_iterable(map(Tensor.split_with_sizes, stretches, sizes))
        for number, part in zip(entries, parts, strict=True):
            result[number].append(part)
        return result

    def dtype(self, parameters: Mapping[str, nn.Parameter]) -> torch.dtype:
        """Returns the dtype of the flat buffer: one that holds the values of all gradients, if none is asked for."""
        dtype = reduce(torch.promote_types, {parameters[name].dtype for name in self.names})
        return dtype if self._comm_dtype is None or dtype.is_complex else self._comm_dtype


def _torn(sizes: Sequence[int], lengths: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Lays pieces of these sizes one after the other into stretches of these lengths.

    Returns:
        The lengths of the parts in each stretch, and the number of the piece of each part; the last number is that of
        the excess.
    """
    parts: list[list[int]] = [[] for _ in lengths]
    numbers, at, left = [], -1, 0
    for number, size in enumerate([*sizes, sum(lengths) - sum(sizes)]):
        while size:
            while not left:
                at += 1
                left = lengths[at]
            part = min(size, left)
            parts[at].append(part)
            numbers.append(number)
            size, left = size - part, left - part
    return parts, numbers
