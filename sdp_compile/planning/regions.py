"""Regions of a tensor: outer products of one index list per dimension, and how to read and write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from sdp_compile.structure.layout import Indices

_View: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], int, bool]
"""Size, strides and offset of a view, and whether it lies in one run of memory, in order."""

Steps: TypeAlias = tuple[int, tuple[tuple[int, int], ...]]
"""A first index, and nested steps from there, the widest first: (number, distance) of each."""


class Region:
    """The outer product of one index list per dimension; evenly spaced lists become slices, which cost nothing.

    Args:
        index: One ascending list of indices for each dimension.

    Attributes:
        index: The same lists.
        shape: The number of indices of each dimension.
    """

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
        self._moved: dict[torch.device, dict[int, Tensor]] = {}
        self._strided: dict[tuple[tuple[int, ...], ...], _View] = {}

    @cached_property
    def _steps(self) -> tuple[Steps | None, ...]:
        return tuple(map(_as_steps, self.index))

    def __reduce__(self) -> tuple[type[Region], tuple[tuple[Indices, ...]]]:
        return Region, (self.index,)  # a copy makes its own lists on devices

    @property
    def numel(self) -> int:
        """The number of elements."""
        return self.shape.numel()

    def read(self, tensor: Tensor) -> Tensor:
        """Returns the region of ``tensor``: a view if all lists are slices, else a copy."""
        view = self._view(tensor)
        for dim, positions in self._lists_on(view.device).items():
            view = view.index_select(dim, positions)
        return view

    def window(self, strides: Sequence[int]) -> _View | None:
        """Returns the elements in order as a view, with several dimensions for a list of equal runs at equal distances.

        Such a list are the rows of some heads in a projection that has queries, keys and values one after the other.

        Args:
            strides: Those of the tensor.

        Returns:
            Size, strides, the offset from the tensor's own, and whether it is one run of memory; None if the elements
            of some dimension have no such order.
        """
        size, distances, start = list[int](), list[int](), 0
        for found, stride in zip(self._steps, strides, strict=True):
            if found is None:
                return None
            first, steps = found
            start += first * stride
            size += [number for number, _ in steps]
            distances += [distance * stride for _, distance in steps]
        return tuple(size), tuple(distances), start, _is_run(size, distances)

    def copy(self, tensor: Tensor, out: Tensor | None = None) -> Tensor:
        """Returns a copy of the region of ``tensor``, in ``out`` if given. With one uneven list it copies once."""
        view, last = self._view(tensor), max(self._lists, default=None)
        if last is None:
            return view.clone() if out is None else out.copy_(view)
        lists = self._lists_on(view.device)
        for dim, positions in lists.items():
            if dim != last:
                view = view.index_select(dim, positions)
        return torch.index_select(view, last, lists[last], out=out)

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Copies ``values``, of any shape with the right number of elements, into the region of ``tensor``."""
        view, values = self._view(tensor), values.reshape(self.shape).to(tensor.device, tensor.dtype)
        if not self._lists:
            view.copy_(values)
            return
        lists = self._lists_on(view.device)
        if len(lists) == 1:
            ((dim, positions),) = lists.items()
            view.index_copy_(dim, positions, values)
        else:
            everything = [torch.arange(size, device=view.device) for size in view.shape]
            grid = torch.meshgrid(*(lists.get(dim, all_) for dim, all_ in enumerate(everything)), indexing="ij")
            view.index_put_(grid, values)

    def add(self, tensor: Tensor, values: Tensor, alpha: float = 1.0) -> None:
        """Adds ``alpha`` times ``values``, of the region's shape, to the region of ``tensor``."""
        view = self._view(tensor)
        lists = self._lists_on(view.device)
        if not lists:
            view.add_(values, alpha=alpha)
        elif len(lists) == 1:
            ((dim, positions),) = lists.items()
            view.index_add_(dim, positions, values, alpha=alpha)
        else:
            self.write(tensor, self.read(tensor).add_(values, alpha=alpha))

    def scale(self, tensor: Tensor, factor: float) -> None:
        """Multiplies the region of ``tensor`` by ``factor``."""
        if self.is_view:
            self._view(tensor).mul_(factor)
        else:
            self.write(tensor, self.read(tensor).mul_(factor))

    def _lists_on(self, device: torch.device) -> dict[int, Tensor]:
        """Returns the uneven lists on a device, copied there once: the host waits for such a copy."""
        if device.type == "cpu":
            return self._lists
        moved = self._moved.get(device)
        if moved is None:
            moved = {dim: positions.to(device) for dim, positions in self._lists.items()}
            if all(type(positions) is Tensor for positions in moved.values()):  # no fake ones
                self._moved[device] = moved
        return moved

    @property
    def is_view(self) -> bool:
        """Whether `read` returns a view."""
        return not self._lists

    def _view(self, tensor: Tensor) -> Tensor:
        if torch.is_grad_enabled() and tensor.requires_grad:
            return tensor[tuple(slice(None) if evenly is None else evenly for evenly in self._slices)]
        # The same in one call: many small regions of gradients are read and written at each step.
        size, stride, start, _ = self._layout(tensor)
        return tensor.as_strided(size, stride, tensor.storage_offset() + start)

    def _layout(self, tensor: Tensor) -> _View:
        """Returns what `_geometry` returns for a tensor, which it knows if it has seen such a tensor."""
        layout = (tensor.shape, tensor.stride())
        if layout not in self._strided:
            self._strided[layout] = self._geometry(*layout)
        return self._strided[layout]

    def _geometry(self, shape: Sequence[int], strides: tuple[int, ...]) -> _View:
        """Returns the view of a tensor of this shape and strides."""
        size, steps, start = [], [], 0
        for extent, stride, evenly in zip(shape, strides, self._slices, strict=True):
            positions = range(extent) if evenly is None else range(extent)[evenly]
            size.append(len(positions))
            steps.append(stride * positions.step)
            start += stride * (positions.start if positions else 0)
        return tuple(size), tuple(steps), start, _is_run(size, steps)


def _is_run(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether a view with these sizes and strides lies in one run of memory, in order."""
    step = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def _as_slice(positions: Indices) -> slice | None:
    """Returns the slice that selects ``positions``; None if they are not evenly spaced."""
    if len(positions) == 0:
        return slice(0, 0)
    first, last = int(positions[0]), int(positions[-1])
    step = 1 if len(positions) == 1 else int(positions[1]) - first
    if len(positions) > 2 and not (np.diff(positions) == step).all():
        return None
    return slice(first, last + 1, step)


def _as_steps(positions: Indices) -> Steps | None:
    """Returns an ascending list as nested steps; None if it is no list of equal runs at equal distances."""
    evenly = _as_slice(positions)
    if evenly is not None:
        return evenly.start, ((len(positions), evenly.step or 1),)
    gaps = np.flatnonzero(np.diff(positions) != 1) + 1
    runs, length = len(gaps) + 1, int(gaps[0])
    starts = positions[::length]
    if len(positions) != runs * length or (gaps % length).any() or _as_slice(starts) is None:
        return None
    return int(positions[0]), ((runs, int(starts[1] - starts[0])), (length, 1))


def full(shape: Iterable[int]) -> Region:
    """Returns the region of a whole tensor."""
    return Region(np.arange(size, dtype=np.int64) for size in shape)
