"""Gradient buckets: which gradients are averaged together, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray

from sdp_compile.ir.program import StateTensor
from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.owners import OwnerSet, OwnerSets, is_member

DEFAULT_BUCKET_BYTES = 16 * 2**20
"""Default upper bound of what a worker holds of a round of buckets.

Step time relative to DDP, measured with `sdp-compile bench` (GPT, 19.5 M parameters, 4 Gloo workers on 2 cores,
coverage 0.5), for forward and backward masking: 8 MiB 0.56 and 0.91, 16 MiB 0.57 and 0.91. Small rounds start earlier,
but each costs messages, and on an accelerator about 0.6 ms of the host.
"""

ALIGNMENT = 8
"""Chunks are multiples of this many elements, at least 16 bytes: one buffer can hold chunks of several dtypes."""

SMALL = 4
"""The last round joins the one before it if it has at most one in ``SMALL`` of the bytes: nothing hides its latency."""


@dataclass(frozen=True, eq=False)
class Bucket:
    """Gradient pieces of one dtype that the same owners average together.

    Attributes:
        number: The position among the buckets of all ranks, so that any two ranks agree on the order of those they
            share.
        round: The number of its round. The buckets of a round travel together.
        owners: The workers that average it.
        dtype: The dtype of its parameters.
        pieces: What it holds, in order.
        nbytes: Its size in bytes.
    """

    number: int
    round: int
    owners: OwnerSet
    dtype: torch.dtype
    pieces: tuple[Piece, ...]
    nbytes: int

    @property
    def chunk(self) -> int:
        """The elements that each owner adds up for all of them. What exceeds the bucket is zero."""
        share = ALIGNMENT * len(self.owners)
        return -(-self.nbytes // (self.dtype.itemsize * share)) * ALIGNMENT

    @property
    def padding_bytes(self) -> int:
        """By how many bytes the chunks of all owners exceed the bucket."""
        return self.chunk * len(self.owners) * self.dtype.itemsize - self.nbytes


def make_buckets(
    pieces: Iterable[Piece], state: Mapping[str, StateTensor], bucket_bytes: int, classes: Sequence[OwnerSet]
) -> tuple[Bucket, ...]:
    """Fills the buckets of one round after the other.

    A round is closed before what the workers of any class hold of it would exceed ``bucket_bytes``, between two
    parameters: whatever lies in two rounds keeps workers of several classes waiting for each other. Buckets are sorted
    by round and by the position of their last piece, that is by when they become ready. This total order follows from
    the plan alone, so two ranks can never issue two common collectives in different orders.

    Args:
        pieces: The pieces of all ranks, in the order in which gradients become ready in the full model.
        state: The full tensors by name.
        bucket_bytes: Upper bound of what a worker holds of a round; a larger parameter has a round of its own.
        classes: The workers of each class, who own the same units.
    """
    known, holders = OwnerSets(), list[NDArray[np.bool_]]()
    rounds: list[list[Piece]] = [[]]
    load = np.zeros(len(classes))
    for _, parts in groupby(pieces, lambda piece: piece.name):
        parameter, own = list(parts), np.zeros(len(classes))
        for piece in parameter:
            number = known.number(piece.owners)
            if number == len(holders):
                holders.append(np.array([is_member(members[0], piece.owners) for members in classes], dtype=np.bool_))
            own += holders[number] * (piece.numel * state[piece.name].dtype.itemsize)
        if rounds[-1] and (load + own).max() > bucket_bytes:
            rounds.append([])
            load = np.zeros(len(classes))
        rounds[-1] += parameter
        load = load + own
    if len(rounds) > 1 and load.max() * SMALL <= bucket_bytes:
        rest = rounds.pop()
        rounds[-1] += rest
    buckets = [bucket for number, members in enumerate(rounds) for bucket in _of_round(number, members, state, known)]
    return tuple(replace(bucket, number=number) for number, bucket in enumerate(buckets))


def _of_round(number: int, pieces: Sequence[Piece], state: Mapping[str, StateTensor], known: OwnerSets) -> list[Bucket]:
    """Returns the buckets of a round, in the order of their last pieces."""
    filled: dict[tuple[int, torch.dtype], list[Piece]] = {}
    for piece in pieces:
        key = known.number(piece.owners), state[piece.name].dtype
        members = filled[key] = filled.pop(key, [])  # to the end
        members.append(piece)
    return [
        Bucket(-1, number, known.sets[owners], dtype, tuple(members), sum(p.numel for p in members) * dtype.itemsize)
        for (owners, dtype), members in filled.items()
    ]
