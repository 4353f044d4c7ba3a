"""Which elements of its parameters a worker steps while the owners of a unit split its optimizer state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.cutting.stack import Stack


@dataclass(frozen=True, eq=False)
class Shard:
    """A run of elements of one piece of a parameter, in the piece's own flat order.

    A shard never mixes two of the model's parameters, so everything that depends on the parameter (its group, freezing
    it, a missing gradient) stays exact.

    Attributes:
        name: The parameter.
        region: Where the piece lies in the worker's tensor; None if the shard is all of that tensor.
        start: Its first element in the piece.
        stop: The end of its elements in the piece.
        parameter: What the wrapped optimizer steps; it has values during a step only.
    """

    name: str
    region: Region | None
    start: int
    stop: int
    parameter: nn.Parameter

    def part(self, tensor: Tensor) -> Tensor:
        """Returns the shard of a tensor that has the shape of the worker's parameter: a view if possible."""
        if self.region is None:
            return tensor
        return self.region.read(tensor).reshape(-1)[self.start : self.stop].reshape(self.parameter.shape)

    def bind(self, values: Tensor, gradient: Tensor | None) -> None:
        """Lends values and a gradient to ``parameter``, until `release`."""
        self.parameter.data = values
        self.parameter.grad = gradient

    def release(self) -> None:
        """Takes values and gradient from ``parameter``, which keeps its shape, dtype and device without memory."""
        self.parameter.grad = None
        self.parameter.data = _hollow(self.parameter.shape, self.parameter)


@dataclass(frozen=True, eq=False)
class ShardedBucket:
    """A gradient bucket whose elements its owners split evenly, in order.

    Attributes:
        number: The bucket's number; -1 for what a worker owns alone.
        round: The number of the bucket's round; -1 for what a worker owns alone.
        owners: The workers that split it, in the order of their chunks.
        pieces: The bucket's pieces in order: (parameter, region of the worker's tensor).
        chunk: Elements per owner; the last chunks are padded.
        shards: This worker's shards, each with its offset in the worker's chunk.
    """

    number: int
    round: int
    owners: OwnerSet
    pieces: tuple[tuple[str, Region], ...]
    chunk: int
    shards: tuple[tuple[int, Shard], ...]

    def dtype(self, tensors: Mapping[str, Tensor]) -> torch.dtype:
        """Returns a dtype that holds the values of all pieces, even if the user converted some of the parameters."""
        result = tensors[self.pieces[0][0]].dtype
        for name, _ in self.pieces:
            result = torch.promote_types(result, tensors[name].dtype)
        return result

    def packed(self, parts: Iterable[tuple[int, Tensor]], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Returns this worker's chunk with the parts at their offsets, zeros elsewhere."""
        chunk = torch.zeros(self.chunk, dtype=dtype, device=device)
        pairs = [(chunk[offset : offset + part.numel()], part.reshape(-1)) for offset, part in parts]
        if pairs:
            torch._foreach_copy_([place for place, _ in pairs], [part for _, part in pairs])
        return chunk

    def write(self, flat: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Copies the chunks of all owners, one after the other, into those parameters' tensors that are given."""
        self._stack.write(flat, tensors)

    @cached_property
    def _stack(self) -> Stack:
        return Stack(self.pieces)


def split(
    bucket: Bucket, owners: OwnerSet, rank: int, pieces: Sequence[tuple[str, Region]], parameters: Mapping[str, Tensor]
) -> ShardedBucket:
    """Splits a bucket among its owners.

    Args:
        bucket: The bucket.
        owners: Its owners, in the order of their chunks.
        rank: This worker, one of them.
        pieces: The bucket's pieces in order: (parameter, region of the worker's tensor).
        parameters: The worker's tensors by name.
    """
    shards = _shards(owners.index(rank) * bucket.chunk, bucket.chunk, pieces, parameters)
    return ShardedBucket(bucket.number, bucket.round, owners, tuple(pieces), bucket.chunk, shards)


def alone(rank: int, pieces: Sequence[tuple[str, Region]], parameters: Mapping[str, Tensor]) -> ShardedBucket:
    """Returns pieces that a worker owns alone as a bucket; the arguments are those of `split`."""
    chunk = sum(region.numel for _, region in pieces)
    return ShardedBucket(-1, -1, (rank,), tuple(pieces), chunk, _shards(0, chunk, pieces, parameters))


def _shards(
    first: int, chunk: int, pieces: Sequence[tuple[str, Region]], parameters: Mapping[str, Tensor]
) -> tuple[tuple[int, Shard], ...]:
    """Returns the shards in a chunk that begins at the element ``first``, each with its offset in the chunk."""
    shards, position = [], 0
    for name, region in pieces:
        start, stop = max(first - position, 0), min(first + chunk - position, region.numel)
        if start < stop:
            # Full states tell per-element state by its shape, so a parameter without dimensions keeps that shape.
            shape = (stop - start,) if parameters[name].dim() else ()
            parameter = nn.Parameter(_hollow(shape, parameters[name]), requires_grad=False)
            shards.append((position + start - first, Shard(name, region, start, stop, parameter)))
        position += region.numel
    return tuple(shards)


def whole(name: str, parameter: Tensor) -> Shard:
    """Returns the shard of a parameter that is averaged with nobody: all of it, in its own shape."""
    empty = nn.Parameter(_hollow(parameter.shape, parameter), requires_grad=False)
    return Shard(name, None, 0, parameter.numel(), empty)


def _hollow(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty((), dtype=like.dtype, device=like.device).expand(shape)
