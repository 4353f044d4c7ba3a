"""Parts of the gradient engine in one process: buckets made by hand, and a reduction that notes what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from sdp_compile.ownership.elements import Piece
from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.gradients.reduction import Reduction
from sdp_compile.runtime.levels.room import Arrangement, Room, arranged_in_order
from sdp_compile.runtime.packing.slots import Slot

OWNERS = (0, 1)


class Group:
    """Stands for the common process group."""


def groups() -> Groups:
    """Stands for the groups of two workers, of which this process is the first."""
    return cast(
        Groups,
        SimpleNamespace(
            raw_group=Group(), rank=0, workers=2, wire=lambda device: device, locate=lambda parameters: None
        ),
    )


def bucket(number: int, **pieces: Sequence[Sequence[int]]) -> Bucket:
    """Returns a bucket of pieces that are given by name as one index list per dimension."""
    made = [Piece(name, OWNERS, tuple(np.array(part, np.int64) for part in index)) for name, index in pieces.items()]
    return Bucket(number, number, OWNERS, torch.float64, tuple(made), 8 * sum(piece.numel for piece in made))


def slot(of: Bucket, comm_dtype: torch.dtype | None = None) -> Slot:
    """Returns the slot of a worker that holds full tensors."""
    holdings: Any = SimpleNamespace(region=lambda piece: Region(piece.index))
    return Slot(of, cast(Holdings, holdings), comm_dtype)


class Noted(Reduction):
    """Multiplies by ten instead of averaging, and notes all calls."""

    def __init__(self) -> None:
        super().__init__(groups())
        self.calls: list[Any] = []
        self.rooms: dict[int, Room] = {}

    def arranged(self, buckets: Sequence[Bucket], dtypes: Sequence[torch.dtype], device: torch.device) -> Arrangement:
        lengths = [sum(piece.numel for piece in bucket.pieces) + 1 for bucket in buckets]
        return arranged_in_order([(0,)] * len(buckets), lengths, dtypes)

    def start(self, number: int, room: Room) -> None:
        self.calls.append(("start", number, *(flat.tolist() for flat in room.flats)))
        self.rooms[number] = room

    def started_all(self) -> None:
        self.calls.append("started all")

    def finish(self, number: int) -> Room:
        self.calls.append(("finish", number))
        room = self.rooms.pop(number)
        torch._foreach_mul_(list(room.flats), 10)
        return room

    def taken(self) -> list[Any]:
        """Returns the calls since the last time."""
        result, self.calls = self.calls, []
        return result


class Launch(torch.autograd.Function):
    """The identity, whose backward hands over gradients as a compiled graph does; "lost" says that they end there."""

    @staticmethod
    def forward(ctx: Any, launched: Callable[..., object], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.launched = launched
        return tuple(parameter.view_as(parameter) for parameter in parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        lost = ctx.launched(*gradients) == "lost"
        return (None, *(None if lost else gradient for gradient in gradients))
