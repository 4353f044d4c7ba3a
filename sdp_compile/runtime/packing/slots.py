"""What a worker holds of a bucket: how its gradients lie in memory that travels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import nn

from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.regions import Region


@dataclass(frozen=True)
class Entry:
    """A piece of the parameter ``name``, and where it lies in this worker's tensor."""

    name: str
    region: Region


class Slot:
    """What this worker holds of one bucket.

    Args:
        bucket: The bucket.
        holdings: Which tensors the worker holds.
        comm_dtype: The dtype in which gradients travel; by default their own.

    Attributes:
        bucket: The bucket.
        entries: Its pieces in order.
        numel: The number of their elements.
        names: The parameters that the pieces belong to.
    """

    def __init__(self, bucket: Bucket, holdings: Holdings, comm_dtype: torch.dtype | None) -> None:
        self.bucket, self._comm_dtype = bucket, comm_dtype
        self.entries = tuple(Entry(piece.name, holdings.region(piece)) for piece in bucket.pieces)
        self.names = tuple(dict.fromkeys(entry.name for entry in self.entries))
        self._sizes = [piece.numel for piece in bucket.pieces]
        self.numel = sum(self._sizes)

    def torn(self, lengths: Sequence[int]) -> Iterator[tuple[int, int, int, int | None]]:
        """Lays the pieces one after the other into stretches of memory of these lengths.

        Yields:
            The number of a stretch, the first element there, the number of elements, and the number of the piece whose
            next elements these are; None for the excess, which is zero.
        """
        stretch, start = 0, 0
        for number, size in enumerate([*self._sizes, sum(lengths) - self.numel]):
            while size:
                if start == lengths[stretch]:
                    stretch, start = stretch + 1, 0
                    continue
                length = min(size, lengths[stretch] - start)
                yield stretch, start, length, number if number < len(self._sizes) else None
                size, start = size - length, start + length

    def dtype(self, parameters: Mapping[str, nn.Parameter]) -> torch.dtype:
        """Returns the dtype of the flat buffer: one that holds the values of all gradients, if none is asked for."""
        dtype = reduce(torch.promote_types, {parameters[name].dtype for name in self.names})
        return dtype if self._comm_dtype is None or dtype.is_complex else self._comm_dtype
