"""Regions of tensors that lie one after the other in a vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.autograd.graph import increment_version

from sdp_compile.planning.regions import Region
from sdp_compile.runtime.cutting.cuts import Cuts, Geometry, Part, Piece, Views, cut
from sdp_compile.runtime.tensors import untracked


class Stack:
    """Regions of tensors that lie one after the other in a vector, copied by few calls.

    Args:
        pieces: The regions, each with the name of its tensor; they may overlap where they are only read.

    Attributes:
        pieces: The same.
        numel: The number of their elements.
    """

    def __init__(self, pieces: Sequence[tuple[str, Region]]) -> None:
        self.pieces = tuple(pieces)
        self.numel = sum(region.numel for _, region in self.pieces)
        self._names = tuple(dict.fromkeys(name for name, _ in self.pieces))
        self._written = tuple(dict.fromkeys(name for name, region in self.pieces if region.numel))
        self._cuts: tuple[object, Cuts] | None = None

    def read(self, flat: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Copies the regions into a vector, which may be longer."""
        with untracked():
            self._views(flat, tensors).pack()

    def write(self, flat: Tensor, tensors: Mapping[str, Tensor]) -> None:
        """Copies a vector, which may be longer, into the regions of those tensors that are given."""
        with untracked():
            self._views(flat, tensors).unpack()
        increment_version([tensors[name] for name in self._written if name in tensors])

    def _views(self, flat: Tensor, tensors: Mapping[str, Tensor]) -> Views:
        given = [tensors.get(name) for name in self._names]
        geometries = tuple(None if one is None else (tuple(one.shape), one.stride()) for one in given)
        key = len(flat), geometries
        if self._cuts is None or self._cuts[0] != key:
            self._cuts = key, self._cut(len(flat), geometries)
        cuts = self._cuts[1]
        return Views(cuts, cuts.places([flat]), given)

    def _cut(self, length: int, geometries: Sequence[Geometry | None]) -> Cuts:
        numbers = {name: number for number, name in enumerate(self._names)}
        pieces = [Piece(numbers[name], region) for name, region in self.pieces]
        parts, start = [], 0
        for number, piece in enumerate(pieces):
            parts.append(Part(0, start, piece.region.numel, number))
            start += piece.region.numel
        return cut([length], parts, pieces, geometries)
