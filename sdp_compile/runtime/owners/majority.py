"""What most owners hold, element by element."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdp_compile.runtime.waiting.words import workers_text

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Repaired:
    """A part of a parameter or of its optimizer state that some owners held otherwise than most.

    Attributes:
        what: What it is, with its indices and units, as errors call it.
        parameter: The parameter.
        state: The name of the optimizer's state; empty for the value.
        owners: All its owners.
        workers: The owners that got what most of them hold.
        elements: In how many elements an owner did.
    """

    what: str
    parameter: str
    state: str
    owners: tuple[int, ...]
    workers: tuple[int, ...]
    elements: int

    def __str__(self) -> str:
        others = [owner for owner in self.owners if owner not in self.workers] or self.owners
        count = f"{self.elements} element{'s' if self.elements != 1 else ''}"
        return f"{self.what}: {count} on {workers_text(self.workers)}, as {workers_text(others)} hold it"


@dataclass(frozen=True)
class Repair:
    """What ``model.repair(optimizer)`` has done; the same on all workers.

    Attributes:
        repaired: What was repaired.
        without_copies: The parameters whose optimizer state has one holder, so that there was nothing to compare.
    """

    repaired: tuple[Repaired, ...]
    without_copies: tuple[str, ...] = ()


def vote(copies: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what most copies hold in each column, and whether more than half of them do.

    Args:
        copies: One row per copy, of integers.
    """
    counts = torch.stack([(copies == one).sum(0) for one in copies])
    most, which = counts.max(0)
    return copies.gather(0, which.unsqueeze(0)).squeeze(0), most * 2 > len(copies)


def as_words(raw: Tensor, itemsize: int) -> Tensor:
    """Returns bytes as integers of the size of an element, so that elements can be compared bit by bit."""
    return raw.view(_WORDS.get(itemsize, torch.int64))
