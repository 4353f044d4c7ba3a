"""Adds and copies many parts of tensors by a few calls: on an accelerator a call costs more than most parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Operation = Literal["sum", "max"]

_HALF = (torch.float16, torch.bfloat16)


class Copies:
    """Copies to make at once."""

    def __init__(self) -> None:
        self._to: list[Tensor] = []
        self._from: list[Tensor] = []

    def add(self, place: Tensor, values: Tensor) -> None:
        """Adds a copy of values into a place of the same shape, unless they are there."""
        if not place.is_set_to(values):
            self._to.append(place)
            self._from.append(values)

    def run(self) -> None:
        """Makes the copies."""
        if self._to:
            torch._foreach_copy_(self._to, self._from)


def combined(parts: Sequence[Sequence[Tensor]], own: Sequence[int], operation: Operation, wide: bool) -> list[Tensor]:
    """Returns the sum or maximum of the parts of each tensor, in their order, half precision in float32.

    Args:
        parts: For each tensor its owners' parts, in the order of the workers; they may be overwritten.
        own: Which of the parts is this worker's own, into which the result goes if that leaves the order as it is.
        operation: What becomes of the parts.
        wide: Whether results of half precision stay in float32.
    """
    several = [number for number, those in enumerate(parts) if len(those) > 1]
    totals, left = dict[int, Tensor](), dict[int, list[Tensor]]()
    for number in several:
        first, second, *others = parts[number]
        if first.dtype in _HALF:
            totals[number], left[number] = first.float(), [second, *others]
        elif own[number] == 1:  # the first two can change places
            totals[number], left[number] = second, [first, *others]
        else:
            totals[number], left[number] = first, [second, *others]
    for place in range(max(map(len, left.values()), default=0)):
        numbers = [number for number in several if place < len(left[number])]
        into, addends = [totals[number] for number in numbers], [left[number][place] for number in numbers]
        if operation == "sum":
            torch._foreach_add_(into, addends)
        else:
            torch._foreach_maximum_(into, addends)
    if not wide:
        totals.update({n: total.to(parts[n][0].dtype) for n, total in totals.items() if parts[n][0].dtype in _HALF})
    return [totals.get(number, those[0]) for number, those in enumerate(parts)]


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns flat tensors in new memory, side by side: views would keep in use all of what they are views of."""
    result: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        numbers = [number for number, tensor in enumerate(tensors) if tensor.dtype == dtype]
        joined = torch.cat([tensors[number] for number in numbers])
        result.update(zip(numbers, joined.split([len(tensors[number]) for number in numbers]), strict=True))
    return [result[number] for number in range(len(tensors))]
