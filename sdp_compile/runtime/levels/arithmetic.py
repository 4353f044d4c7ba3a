"""Adds and copies many parts of tensors by a few calls: on an accelerator a call costs more than most parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Combination:
    """How rows are added up in the order of the workers, half precision in float32; tensors are named by number.

    Attributes:
        first: For each tensor the row into which the others are added.
        halves: The tensors in half precision that have several rows.
        others: In turn, tensors and the row that is added to each of them.
    """

    first: tuple[int, ...]
    halves: tuple[int, ...]
    others: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    def of(self, rows: Sequence[Tensor], operation: Operation, wide: bool) -> list[Tensor]:
        """Returns the sum or maximum of the rows of each tensor.

        Args:
            rows: The rows; they may be overwritten.
            operation: What becomes of them.
            wide: Whether results of half precision stay in float32.
        """
        totals = [rows[number] for number in self.first]
        dtypes = [totals[number].dtype for number in self.halves]
        for number in self.halves:
            totals[number] = totals[number].float()
        combine = torch._foreach_add_ if operation == "sum" else torch._foreach_maximum_
        for into, added in self.others:
            combine([totals[number] for number in into], [rows[number] for number in added])
        if not wide:
            for number, dtype in zip(self.halves, dtypes, strict=True):
                totals[number] = totals[number].to(dtype)
        return totals


def combination(parts: Sequence[Sequence[int]], dtypes: Sequence[torch.dtype]) -> Combination:
    """Returns how rows are added up.

    Args:
        parts: For each tensor its owners' rows, in the order of the workers; this worker's own has the tensor's number.
        dtypes: The dtype of each tensor.
    """
    ordered = [list(those) for those in parts]
    halves = []
    for number, (those, dtype) in enumerate(zip(ordered, dtypes, strict=True)):
        if dtype in _HALF and len(those) > 1:
            halves.append(number)
        elif len(those) > 1 and those[1] == number:  # the first two can change places, and the sum is where it belongs
            those[0], those[1] = those[1], those[0]
    others = []
    for place in range(1, max(map(len, ordered), default=0)):
        into = tuple(number for number, those in enumerate(ordered) if place < len(those))
        others.append((into, tuple(ordered[number][place] for number in into)))
    return Combination(tuple(those[0] for those in ordered), tuple(halves), tuple(others))


def apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns flat tensors in new memory, side by side: views would keep in use all of what they are views of."""
    result: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        numbers = [number for number, tensor in enumerate(tensors) if tensor.dtype == dtype]
        joined = torch.cat([tensors[number] for number in numbers])
        result.update(zip(numbers, joined.split([len(tensors[number]) for number in numbers]), strict=True))
    return [result[number] for number in range(len(tensors))]
