"""Packs the gradients of all buckets of a round by few calls, and unpacks them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import is_

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from sdp_compile.errors import SDPError
from sdp_compile.runtime.cutting.cuts import Cuts, Part, Piece, Views, cut
from sdp_compile.runtime.levels.room import Arrangement, Room
from sdp_compile.runtime.packing.slots import Entry, Slot
from sdp_compile.runtime.sharding.gradient import local_gradient
from sdp_compile.runtime.tensors import untracked

_REMEMBERED = 8
"""Numbers of cuts that are kept; they differ in which gradients are missing."""


class Lot:
    """The buckets of this worker in one round, and the room in which they travel.

    Args:
        slots: What it holds of each, in their order.

    Attributes:
        slots: The same.
        names: The parameters of which it holds pieces.
    """

    def __init__(self, slots: Iterable[Slot]) -> None:
        self.slots = tuple(slots)
        self.names = tuple(dict.fromkeys(name for slot in self.slots for name in slot.names))
        self._rows = _rows(entry for slot in self.slots for entry in slot.entries)
        self._room: Room | None = None
        self._arrangement: Arrangement | None = None
        self._cuts: dict[Hashable, Cuts] = {}
        self._places: Sequence[Tensor] | None = None
        self._packed: tuple[list[Tensor | None], Views] | None = None

    def forget(self) -> None:
        """Drops the room."""
        self._room = self._packed = self._places = None

    def pack(
        self,
        arranged: Callable[[], Arrangement],
        parameters: Mapping[str, nn.Parameter],
        given: Mapping[nn.Parameter, Tensor],
    ) -> Room:
        """Packs the gradients of the buckets into a new room, zeros where there are none.

        Args:
            arranged: Says how the room is arranged.
            parameters: The module's parameters by name, whose ``.grad`` is packed.
            given: Gradients to add to ``.grad``.

        Returns:
            The room, whose tensors are the buckets.

        Raises:
            SDPError: If a gradient is sparse.
        """
        with untracked():
            held = [parameters[name] for name in self.names]
            gradients = [local_gradient(parameter) for parameter in held]
            if given:
                gradients = [
                    _total(old, given.get(parameter), self._rows.get(name))
                    for name, old, parameter in zip(self.names, gradients, held, strict=True)
                ]
            for name, gradient in zip(self.names, gradients, strict=True):
                if gradient is not None and gradient.layout != torch.strided:
                    raise SDPError(
                        f"The gradient of {name!r} is sparse and cannot be averaged over slices. Build the "
                        "embedding with sparse=False."
                    )
            room = self._make_room(arranged, parameters)
            views = self._views(room, gradients, True)
            views.pack()
        self._packed = None if any(parameter in given for parameter in held) else (gradients, views)
        return room

    def clear(self, arranged: Callable[[], Arrangement], parameters: Mapping[str, nn.Parameter]) -> None:
        """Puts zeros in place of all gradients; the arguments are those of `pack`."""
        for memory in self._make_room(arranged, parameters).memory:
            memory.zero_()

    def sent(self, device: torch.device) -> Room:
        """Returns the room on the device on which it travels, with all buckets packed."""
        assert self._room is not None and self._arrangement is not None
        (buffer,) = self._room.memory
        if buffer.device != device:
            self._room, self._packed, self._places = self._arrangement.over(buffer.to(device)), None, None
        return self._room

    def unpack(self, averages: Room, parameters: Mapping[str, nn.Parameter]) -> None:
        """Writes the averages of all buckets into ``.grad``, which it creates if needed, and drops the room."""
        is_here, packed = averages is self._room, self._packed
        gradients = [_gradient(parameters[name]) for name in self.names]
        with untracked():
            if is_here and packed is not None and all(map(is_, gradients, packed[0])):
                packed[1].unpack()
            else:
                self._views(averages, gradients, is_here).unpack()
        self.forget()
        increment_version([gradient for gradient in gradients if gradient is not None])

    def _make_room(self, arranged: Callable[[], Arrangement], parameters: Mapping[str, nn.Parameter]) -> Room:
        arrangement = arranged()
        if arrangement != self._arrangement:
            self._arrangement = arrangement
            self._cuts.clear()
        self._room, self._places = arrangement.room(parameters[self.slots[0].names[0]].device), None
        return self._room

    def _views(self, room: Room, gradients: Sequence[Tensor | None], is_here: bool) -> Views:
        """Returns the parts of a room, which may be that of this lot, and of all gradients."""
        geometries = tuple(None if one is None else (one.shape, one.stride()) for one in gradients)
        line = _line(room) if is_here else None
        lines = [one for own in room.stretches for one in own] if line is None else [line]
        key: Hashable = geometries if line is not None else (geometries, tuple(map(len, lines)))
        found = self._cuts.get(key)
        if found is None:
            if len(self._cuts) == _REMEMBERED:
                self._cuts.clear()
            numbers = {name: number for number, name in enumerate(self.names)}
            pieces = [Piece(numbers[one.name], one.region) for slot in self.slots for one in slot.entries]
            parts = _parts(self.slots, room.stretches, line)
            found = self._cuts[key] = cut([len(one) for one in lines], parts, pieces, geometries)
        if not is_here:
            return Views(found, found.places(lines), gradients)
        if self._places is None:  # unpacking needs what packing has cut
            self._places = found.places(lines)
        return Views(found, self._places, gradients)


def lots_of(slots: Sequence[Slot]) -> tuple[Lot, ...]:
    """Returns the buckets of each round, given those of all rounds in their order."""
    return tuple(Lot(those) for _, those in groupby(slots, lambda slot: slot.bucket.round))


def _parts(slots: Sequence[Slot], memory: Sequence[Sequence[Tensor]], line: Tensor | None) -> list[Part]:
    """Returns what lies where: in one line that contains all memory, or in each vector for itself."""
    parts, vectors, pieces = list[Part](), 0, 0
    for slot, own in zip(slots, memory, strict=True):
        starts = [0 if line is None else int(one.storage_offset() - line.storage_offset()) for one in own]
        for at, start, length, piece in slot.torn([len(one) for one in own]):
            number = vectors + at if line is None else 0
            parts.append(Part(number, starts[at] + start, length, None if piece is None else pieces + piece))
        vectors += len(own)
        pieces += len(slot.entries)
    return parts


def _line(room: Room) -> Tensor | None:
    """Returns all memory of a room as one vector, if it has one dtype."""
    first, *others = dict.fromkeys(room.dtypes)
    (buffer,) = room.memory
    return None if others else buffer.view(first)


def _rows(entries: Iterable[Entry]) -> dict[str, slice]:
    """Returns from which index to which of its first dimension each parameter has pieces."""
    result: dict[str, slice] = {}
    for entry in entries:
        first = entry.region.index[:1]
        if first and len(first[0]):
            known = result.get(entry.name, slice(int(first[0][0]), 0))
            result[entry.name] = slice(min(known.start, int(first[0][0])), max(known.stop, int(first[0][-1]) + 1))
    return result


def _total(old: Tensor | None, new: Tensor | None, rows: slice | None) -> Tensor | None:
    """Returns in these rows a gradient as autograd will have accumulated it; changes neither."""
    if old is None or new is None:
        return new if old is None else old
    if rows is None:
        return old + new
    total = torch.empty_like(old)
    torch.add(old[rows], new[rows], out=total[rows])
    return total


def _gradient(parameter: nn.Parameter) -> Tensor | None:
    """Returns ``.grad``, which it creates if needed; None for what was frozen by the user since, on all ranks."""
    if parameter.grad is None and parameter.requires_grad:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
