"""Packs the gradients of all buckets of a round by few calls, and unpacks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sdp_compile.runtime.levels.room import Arrangement, Room
from sdp_compile.runtime.packing.slots import Slot
from sdp_compile.runtime.pairs import Pairs

Average: TypeAlias = tuple[Slot, Sequence[Tensor]]
"""A bucket, and the memory that holds its averages: vectors that it fills one after the other."""


@dataclass(frozen=True)
class _Packed:
    """What was packed last, to be unpacked by the same views."""

    gradients: Mapping[str, Tensor]
    memory: Sequence[Tensor]
    pairs: Pairs

    def fits(self, averages: Sequence[Average], parameters: Mapping[str, nn.Parameter]) -> bool:
        """Whether the views are of the memory of these averages and of the current gradients."""
        memory = [stretch for _, own in averages for stretch in own]
        return (
            len(memory) == len(self.memory)
            and all(one is packed for one, packed in zip(memory, self.memory, strict=True))
            and all(parameters[name].grad is gradient for name, gradient in self.gradients.items())
        )


class Lot:
    """The buckets of this worker in one round, and the room in which they travel.

    Args:
        slots: What it holds of each, in their order.
    """

    def __init__(self, slots: Iterable[Slot]) -> None:
        self.slots = tuple(slots)
        self._room: Room | None = None
        self._stretches: Mapping[Slot, Sequence[Tensor]] = {}
        self._arrangement: Arrangement | None = None
        self._packed: _Packed | None = None

    def forget(self) -> None:
        """Drops the room."""
        self._room = self._packed = None
        self._stretches = {}

    def pack(
        self,
        slots: Sequence[Slot],
        arranged: Callable[[], Arrangement],
        parameters: Mapping[str, nn.Parameter],
        given: Mapping[str, Tensor],
    ) -> list[Tensor]:
        """Packs the gradients of some of the buckets into the room, zeros where there are none.

        Args:
            slots: The buckets.
            arranged: Says how the room is arranged if there is none yet.
            parameters: The module's parameters by name, whose ``.grad`` is packed.
            given: Gradients by name to add to ``.grad``.

        Returns:
            The memory of these buckets.

        Raises:
            SDPError: If a gradient is sparse.
        """
        with torch._C.DisableTorchFunctionSubclass():  # spares the way through Python that gradients go
            memory, pairs = self._memory(slots, arranged, parameters), Pairs()
            filled = [slot.fill(own, parameters, given, pairs) for slot, own in zip(slots, memory, strict=True)]
            pairs.pack()
        found = [gradients for gradients in filled if gradients is not None]
        is_all = len(found) == len(self.slots)
        stretches = [stretch for own in memory for stretch in own]
        self._packed = _Packed({n: g for one in found for n, g in one.items()}, stretches, pairs) if is_all else None
        return stretches

    def clear(
        self, slots: Sequence[Slot], arranged: Callable[[], Arrangement], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Puts zeros in place of the gradients of some of the buckets; the arguments are those of `pack`."""
        for own in self._memory(slots, arranged, parameters):
            torch._foreach_zero_(list(own))

    def sent(self, device: torch.device) -> Room:
        """Returns the room on the device on which it travels, with all buckets packed."""
        assert self._room is not None and self._arrangement is not None
        (buffer,) = self._room.memory
        if buffer.device != device:
            self._room, self._packed, self._stretches = self._arrangement.over(buffer.to(device)), None, {}
        return self._room

    def unpack(self, averages: Sequence[Average], parameters: Mapping[str, nn.Parameter]) -> None:
        """Writes averages into ``.grad``, which it creates if needed."""
        packed = self._packed
        self.forget()
        with torch._C.DisableTorchFunctionSubclass():
            if packed is not None and packed.fits(averages, parameters):
                packed.pairs.unpack()
                return
            for slot, memory in averages:
                slot.unpack(memory, parameters)

    def _memory(
        self, slots: Sequence[Slot], arranged: Callable[[], Arrangement], parameters: Mapping[str, nn.Parameter]
    ) -> list[Sequence[Tensor]]:
        if self._room is None:
            self._arrangement = arranged()
            self._room = self._arrangement.room(parameters[self.slots[0].names[0]].device)
            self._stretches = dict(zip(self.slots, self._room.stretches, strict=True))
        return [self._stretches[slot] for slot in slots]


def lots_of(slots: Sequence[Slot]) -> tuple[Lot, ...]:
    """Returns the buckets of each round, given those of all rounds in their order."""
    return tuple(Lot(those) for _, those in groupby(slots, lambda slot: slot.bucket.round))
