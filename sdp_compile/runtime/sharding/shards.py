"""Which elements of its parameters a worker steps, where the owners of a unit split its optimizer state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.regions import Region


@dataclass(frozen=True, eq=False)
class Shard:
    """The elements ``start`` to ``stop`` of a piece of the parameter ``name``, in the piece's own flat order.

    ``region`` is where the piece lies in the worker's tensor; None where the shard is all of that tensor.
    ``parameter`` is what the wrapped optimizer steps. It never mixes two of the model's parameters, so whatever
    depends on the parameter (its group, freezing it, no gradient) stays exact; it has values during a step only.
    """

    name: str
    region: Region | None
    start: int
    stop: int
    parameter: nn.Parameter

    def part(self, tensor: Tensor) -> Tensor:
        """The shard of a tensor that has the shape of the worker's parameter: a view where that can be."""
        if self.region is None:
            return tensor
        return self.region.read(tensor).reshape(-1)[self.start : self.stop].reshape(self.parameter.shape)

    def bind(self, values: Tensor, gradient: Tensor | None) -> None:
        """Lends the values and the gradient to ``parameter``; `release` takes them back."""
        self.parameter.data = values
        self.parameter.grad = gradient

    def release(self) -> None:
        """Leaves the shape, dtype and device of ``parameter``, in no memory."""
        self.parameter.grad = None
        self.parameter.data = _hollow(self.parameter.shape, self.parameter)


@dataclass(frozen=True, eq=False)
class ShardedBucket:
    """A gradient bucket whose elements its ``owners`` split evenly, in order: ``chunk`` elements each.

    The last chunks are padded. ``pieces`` are (parameter, region) in the bucket's order; ``shards`` are this worker's,
    each with its offset in the worker's chunk.
    """

    number: int
    owners: OwnerSet
    pieces: tuple[tuple[str, Region], ...]
    chunk: int
    shards: tuple[tuple[int, Shard], ...]

    def dtype(self, tensors: Mapping[str, Tensor]) -> torch.dtype:
        """The dtype that holds the values of all pieces, which the user can have converted apart."""
        result = tensors[self.pieces[0][0]].dtype
        for name, _ in self.pieces:
            result = torch.promote_types(result, tensors[name].dtype)
        return result

    def packed(self, parts: Iterable[tuple[int, Tensor]], dtype: torch.dtype, device: torch.device) -> Tensor:
        """This worker's chunk with the parts at their offsets, zeros elsewhere."""
        chunk = torch.zeros(self.chunk, dtype=dtype, device=device)
        for offset, part in parts:
            chunk[offset : offset + part.numel()] = part.reshape(-1)
        return chunk

    def write(self, rows: Sequence[Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Copies the chunks of all owners, in their order, into the ``tensors`` of those parameters that are given."""
        position = 0
        for name, region in self.pieces:
            if name in tensors and region.numel:
                region.write(tensors[name], self._range(rows, position, position + region.numel))
            position += region.numel

    def _range(self, rows: Sequence[Tensor], start: int, stop: int) -> Tensor:
        """The elements of the bucket from ``start`` to ``stop``: a view where one chunk holds them."""
        first, last = start // self.chunk, (stop - 1) // self.chunk
        parts = [rows[number] for number in range(first, last + 1)]
        parts[-1] = parts[-1][: stop - last * self.chunk]
        parts[0] = parts[0][start - first * self.chunk :]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def split(
    number: int, owners: OwnerSet, rank: int, pieces: Sequence[tuple[str, Region]], parameters: Mapping[str, Tensor]
) -> ShardedBucket:
    """Splits a bucket among its owners, of which ``rank`` is one."""
    chunk = -(-sum(region.numel for _, region in pieces) // len(owners))
    first = owners.index(rank) * chunk
    shards, position = [], 0
    for name, region in pieces:
        start, stop = max(first - position, 0), min(first + chunk - position, region.numel)
        if start < stop:
            # A state is per element where its shape is the parameter's: one without dimensions stays so.
            shape = (stop - start,) if parameters[name].dim() else ()
            parameter = nn.Parameter(_hollow(shape, parameters[name]), requires_grad=False)
            shards.append((position + start - first, Shard(name, region, start, stop, parameter)))
        position += region.numel
    return ShardedBucket(number, owners, tuple(pieces), chunk, tuple(shards))


def whole(name: str, parameter: Tensor) -> Shard:
    """The shard of a parameter that is reduced with nobody: all of it, in its own shape."""
    empty = nn.Parameter(_hollow(parameter.shape, parameter), requires_grad=False)
    return Shard(name, None, 0, parameter.numel(), empty)


def _hollow(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty((), dtype=like.dtype, device=like.device).expand(shape)
