"""Gradient buckets: which gradients are averaged together, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from sdp_compile.ir.program import StateTensor
from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.owners import OwnerSet, OwnerSets

DEFAULT_BUCKET_BYTES = 8 * 2**20
"""Default upper bound of a bucket's size.

Step time relative to DDP, measured with `sdp-compile bench` (GPT, 19.5 M parameters, 4 Gloo workers on 2 cores,
coverage 0.5), for forward and backward masking: 1 MiB 0.55 and 0.96, 2 MiB 0.53 and 0.89, 8 MiB 0.53 and 0.88. Small
buckets start earlier, but each costs a round of messages. With slow communication, smaller buckets hide more of it.
"""

MOST_GROUPS = 16
"""With at most this many owner groups per worker, each bucket has its own collective.

With more groups, the latency of their collectives would bound a step, so the runtime averages all buckets with
all-to-alls among all workers.
"""


@dataclass(frozen=True, eq=False)
class Bucket:
    """Gradient pieces of one dtype that the same owners average together.

    Attributes:
        number: The position among the buckets of all ranks, so that any two ranks agree on the order of those they
            share.
        owners: The workers that average it.
        dtype: The dtype of its parameters.
        pieces: What it holds, in order.
        nbytes: Its size in bytes.
    """

    number: int
    owners: OwnerSet
    dtype: torch.dtype
    pieces: tuple[Piece, ...]
    nbytes: int


def groups_per_worker(buckets: Iterable[Bucket]) -> int:
    """Returns the largest number of owner groups that any worker is in, given the buckets of all workers."""
    members = [np.asarray(owners, dtype=np.int64) for owners in {bucket.owners for bucket in buckets}]
    return int(np.bincount(np.concatenate(members)).max()) if members else 0


def make_buckets(pieces: Iterable[Piece], state: Mapping[str, StateTensor], bucket_bytes: int) -> tuple[Bucket, ...]:
    """Fills buckets with pieces.

    Buckets are sorted by the position of their last piece, that is by when they become ready. This total order follows
    from the plan alone, so two ranks can never issue two common collectives in different orders.

    Args:
        pieces: The pieces of all ranks, in the order in which gradients become ready in the full model.
        state: The full tensors by name.
        bucket_bytes: A bucket is closed before it would exceed this size; a larger piece has a bucket of its own.
    """
    known = OwnerSets()
    opened: dict[tuple[int, torch.dtype], list[Piece]] = {}
    filled: dict[tuple[int, torch.dtype], int] = {}
    last: dict[tuple[int, torch.dtype], int] = {}
    closed: list[tuple[int, Bucket]] = []

    def close(key: tuple[int, torch.dtype]) -> None:
        bucket = Bucket(-1, known.sets[key[0]], key[1], tuple(opened.pop(key)), filled.pop(key))
        closed.append((last[key], bucket))

    for position, piece in enumerate(pieces):
        dtype = state[piece.name].dtype
        key, nbytes = (known.number(piece.owners), dtype), piece.numel * dtype.itemsize
        if key in opened and filled[key] + nbytes > bucket_bytes:
            close(key)
        opened.setdefault(key, []).append(piece)
        filled[key] = filled.get(key, 0) + nbytes
        last[key] = position
    for key in list(opened):
        close(key)
    # No two buckets have the same last piece, so the owners need not break ties.
    closed.sort(key=lambda entry: entry[0])
    return tuple(replace(bucket, number=number) for number, (_, bucket) in enumerate(closed))
