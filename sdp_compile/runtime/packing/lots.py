"""Packs the gradients of all buckets of a round by few calls, and unpacks them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import torch
from torch import Tensor, nn

from sdp_compile.runtime.packing.slots import Slot
from sdp_compile.runtime.pairs import Pairs

Average: TypeAlias = tuple[Slot, Tensor, slice]
"""A bucket, its flat buffer, and the part of the buffer that holds averages."""


@dataclass(frozen=True)
class _Packed:
    """What was packed last, to be unpacked by the same views."""

    flats: Sequence[Tensor]
    gradients: Mapping[str, Tensor]
    pairs: Pairs

    def fits(self, averages: Sequence[Average], parameters: Mapping[str, nn.Parameter]) -> bool:
        """Whether the views are of these buffers and of the current gradients."""
        return (
            len(averages) == len(self.flats)
            and all(flat is packed for (_, flat, _), packed in zip(averages, self.flats, strict=True))
            and all(part.indices(slot.numel)[:2] == (0, slot.numel) for slot, _, part in averages)
            and all(parameters[name].grad is gradient for name, gradient in self.gradients.items())
        )


class Lot:
    """The buckets of this worker in one round.

    Args:
        slots: What it holds of each, in their order.
    """

    def __init__(self, slots: Iterable[Slot]) -> None:
        self.slots = tuple(slots)
        self._packed: _Packed | None = None

    def forget(self) -> None:
        """Drops the views of what was packed last, which keep its memory in use until it is unpacked."""
        self._packed = None

    def pack(
        self,
        slots: Sequence[Slot],
        lengths: Sequence[int],
        parameters: Mapping[str, nn.Parameter],
        given: Mapping[str, Tensor],
    ) -> list[Tensor]:
        """Returns flat buffers with the gradients of some of the buckets, zeros where there are none.

        Args:
            slots: The buckets.
            lengths: Elements of the buffer of each.
            parameters: The module's parameters by name, whose ``.grad`` is packed.
            given: Gradients by name to add to ``.grad``.

        Raises:
            SDPError: If a gradient is sparse.
        """
        with torch._C.DisableTorchFunctionSubclass():  # spares the way through Python that gradients go
            flats, pairs = _room(slots, lengths, parameters), Pairs()
            filled = [slot.fill(flat, parameters, given, pairs) for slot, flat in zip(slots, flats, strict=True)]
            pairs.pack()
        found = [gradients for gradients in filled if gradients is not None]
        is_all = len(found) == len(self.slots)
        self._packed = _Packed(flats, {n: g for one in found for n, g in one.items()}, pairs) if is_all else None
        return flats

    def unpack(self, averages: Sequence[Average], parameters: Mapping[str, nn.Parameter]) -> None:
        """Writes averages into ``.grad``, which it creates if needed."""
        packed, self._packed = self._packed, None
        with torch._C.DisableTorchFunctionSubclass():
            if packed is not None and packed.fits(averages, parameters):
                packed.pairs.unpack()
                return
            for slot, flat, part in averages:
                slot.unpack(flat, part, parameters)


def lots_of(slots: Sequence[Slot]) -> tuple[Lot, ...]:
    """Returns the buckets of each round, given those of all rounds in their order."""
    return tuple(Lot(those) for _, those in groupby(slots, lambda slot: slot.bucket.round))


def _room(slots: Sequence[Slot], lengths: Sequence[int], parameters: Mapping[str, nn.Parameter]) -> list[Tensor]:
    """Returns new flat buffers, side by side where they have the same dtype and device; their excess is zero."""
    kinds = [(slot.dtype(parameters), parameters[slot.names[0]].device) for slot in slots]
    flats: dict[int, Tensor] = {}
    for dtype, device in dict.fromkeys(kinds):
        numbers = [number for number, kind in enumerate(kinds) if kind == (dtype, device)]
        sizes = [lengths[number] for number in numbers]
        whole = torch.empty(sum(sizes), dtype=dtype, device=device)
        flats.update(zip(numbers, whole.split_with_sizes(sizes), strict=True))
    made = [flats[number] for number in range(len(slots))]
    excess = [flat[slot.numel :] for slot, flat in zip(slots, made, strict=True) if len(flat) > slot.numel]
    if excess:
        torch._foreach_zero_(excess)
    return made
