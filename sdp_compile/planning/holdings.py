"""Where a piece of a full tensor lies in the tensor that a worker holds, and how to read and write it there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from sdp_compile.ownership.elements import Piece
from sdp_compile.planning.plan import Plan
from sdp_compile.planning.unowned import Rest, rests
from sdp_compile.structure.layout import Indices

Lowering = Literal["sliced", "masked"]

CHUNK_BYTES = 64 * 2**20
"""Size of the flat buffers in which state travels: enough to hide latency, little beside a model."""


class Region:
    """The outer product of one index list per dimension; evenly spaced lists are slices, which cost nothing."""

    def __init__(self, index: Iterable[Indices]) -> None:
        lists = list(index)
        self.index: tuple[Indices, ...] = tuple(lists)
        self.shape = torch.Size(len(positions) for positions in lists)
        self._slices = tuple(_as_slice(positions) for positions in lists)
        self._lists = {
            dim: torch.from_numpy(np.ascontiguousarray(positions))
            for dim, (positions, evenly) in enumerate(zip(lists, self._slices, strict=True))
            if evenly is None
        }

    @property
    def numel(self) -> int:
        return self.shape.numel()

    def read(self, tensor: Tensor) -> Tensor:
        """The region of ``tensor``: a view where all lists are slices, else a copy."""
        view = self._view(tensor)
        for dim, positions in self._lists.items():
            view = view.index_select(dim, positions.to(view.device))
        return view

    def copy(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        """A copy of the region of ``tensor``, into ``out`` if given; with one uneven list, without a second copy."""
        view, last = self._view(tensor), max(self._lists, default=None)
        if last is None:
            return view.clone() if out is None else out.copy_(view)
        for dim, positions in self._lists.items():
            if dim != last:
                view = view.index_select(dim, positions.to(view.device))
        return torch.index_select(view, last, self._lists[last].to(view.device), out=out)

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Copies ``values``, of any shape with the right number of elements, into the region of ``tensor``."""
        view, values = self._view(tensor), values.reshape(self.shape).to(tensor.device, tensor.dtype)
        if not self._lists:
            view.copy_(values)
        elif len(self._lists) == 1:
            ((dim, positions),) = self._lists.items()
            view.index_copy_(dim, positions.to(view.device), values)
        else:
            everything = [torch.arange(size) for size in view.shape]
            grid = torch.meshgrid(*(self._lists.get(dim, all_) for dim, all_ in enumerate(everything)), indexing="ij")
            view.index_put_(tuple(positions.to(view.device) for positions in grid), values)

    def _view(self, tensor: Tensor) -> Tensor:
        return tensor[tuple(slice(None) if evenly is None else evenly for evenly in self._slices)]


def _as_slice(positions: Indices) -> slice | None:
    """The slice that selects ``positions``, or None where they are not evenly spaced."""
    if len(positions) == 0:
        return slice(0, 0)
    first, last = int(positions[0]), int(positions[-1])
    step = 1 if len(positions) == 1 else int(positions[1]) - first
    if len(positions) > 2 and not (np.diff(positions) == step).all():
        return None
    return slice(first, last + 1, step)


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that a worker holds under ``name``: the region of the full tensor ``source``."""

    name: str
    source: str
    region: Region


class Local:
    """One worker's view of a plan: where pieces lie in its own tensors."""

    def __init__(self, plan: Plan, rank: int, lowering: str = "sliced") -> None:
        self.plan, self.rank, self.lowering = plan, rank, lowering

    def region(self, piece: Piece) -> Region:
        """Where a piece that this worker owns lies in its tensor; the masked lowering holds full-size tensors."""
        return Region(piece.index if self.lowering == "masked" else self.plan.local_index(piece, self.rank))

    def own(self, name: str) -> Region | None:
        """Where this worker's tensor lies in the full tensor; None where it holds nothing of it."""
        if self.lowering == "masked":
            return full(self.plan.state[name].shape)
        kept = self.plan.kept(name, self.rank)
        return None if kept is None else Region(kept)

    def held(self) -> Iterator[Held]:
        """All that the worker holds: its own tensors, and under backward masking the rests of its parameters."""
        rests = self._rests
        for name in self.plan.state:
            region = self.own(name)
            if region is not None:
                yield Held(name, name, region)
            yield from (Held(rest.name, name, Region(rest.index)) for rest in rests.get(name, ()))

    def not_owned(self, piece: Piece) -> tuple[str, Region]:
        """Under backward masking, the tensor in which a piece that others own lies, and where in it."""
        if self.lowering == "masked":
            return piece.name, Region(piece.index)
        parts = self._rests[piece.name]
        # It is joined last along the last dimension in which the worker owns none of its indices.
        rest = next(part for part in reversed(parts) if part.dim is None or _lies_in(piece, part, part.dim))
        index = [np.searchsorted(held, wanted) for held, wanted in zip(rest.index, piece.index, strict=True)]
        return rest.name, Region(index)

    @cached_property
    def _rests(self) -> dict[str, tuple[Rest, ...]]:
        return rests(self.plan, self.rank) if self.lowering == "sliced" else {}


def _lies_in(piece: Piece, rest: Rest, dim: int) -> bool:
    """Whether the rest holds the piece's indices along ``dim``; it holds all of them or none."""
    return bool(np.isin(piece.index[dim][0], rest.index[dim]))


def full(shape: Iterable[int]) -> Region:
    """The whole of a tensor."""
    return Region(np.arange(size, dtype=np.int64) for size in shape)


def local_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of a module under all of their names."""
    result: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    result.update(module.named_buffers(remove_duplicate=False))
    return result


def replace_tensors(module: nn.Module, new: Mapping[str, Tensor]) -> None:
    """Puts other tensors in the place of those with the given names, wherever the module holds the same tensor."""
    tensors = local_tensors(module)
    by_identity = {id(tensors[name]): value for name, value in new.items()}
    for child in module.modules():
        for registry in (child._parameters, child._buffers):
            for key, tensor in registry.items():
                if tensor is not None and id(tensor) in by_identity:
                    registry[key] = by_identity[id(tensor)]  # type: ignore[assignment]


def batches(sizes: Iterable[tuple[int, object]], limit: int = CHUNK_BYTES) -> Iterator[slice]:
    """Cuts a sequence of (bytes, key) into runs of one key that hold at most ``limit`` bytes, or one member."""
    start, position, held, current = 0, -1, 0, None
    for position, (nbytes, key) in enumerate(sizes):
        if position > start and (held + nbytes > limit or key != current):
            yield slice(start, position)
            start, held = position, 0
        held, current = held + nbytes, key
    if position >= start:
        yield slice(start, position + 1)
