"""Cuts gradients, and the vectors in which they travel, into parts that a few calls copy.

Each step has new gradients and new vectors, cut at the same places. These are found once: after that a step splits each
tensor by one call, however many parts it has, and copies all parts by one or two. On an accelerator, and in Python,
a call costs more than most parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from sdp_compile.planning.regions import Region

Geometry: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""The shape and the strides of a tensor."""


class Part(NamedTuple):
    """A run of elements in one of the vectors.

    Attributes:
        line: The number of the vector.
        start: The first element there.
        length: The number of elements.
        piece: The number of the piece whose next elements they are; None for what is zero.
    """

    line: int
    start: int
    length: int
    piece: int | None


class Piece(NamedTuple):
    """A region of the gradient with the number ``tensor``."""

    tensor: int
    region: Region


class _Window(NamedTuple):
    """A view of the gradient with the number ``tensor``."""

    tensor: int
    size: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def of(self, tensors: Sequence[Tensor | None]) -> Tensor:
        tensor = _present(tensors[self.tensor])
        return tensor.as_strided(self.size, self.strides, tensor.storage_offset() + self.offset)


class _Alone(NamedTuple):
    """A piece that is copied alone: it is no view, or lies torn in the vectors though it is no run of memory."""

    piece: Piece
    window: _Window | None
    places: tuple[int, ...]
    lengths: tuple[int, ...]

    def pack(self, tensors: Sequence[Tensor | None], places: Sequence[Tensor]) -> None:
        if self.window is not None:
            values = self.window.of(tensors)
        else:
            tensor, place = _present(tensors[self.piece.tensor]), places[self.places[0]]
            if len(self.places) == 1 and tensor.dtype == place.dtype:
                self.piece.region.copy(tensor, place.view(self.piece.region.shape))
                return
            values = self.piece.region.copy(tensor)
        _copy([places[number] for number in self.places], values.reshape(-1).split_with_sizes(self.lengths))

    def unpack(self, tensors: Sequence[Tensor | None], places: Sequence[Tensor]) -> None:
        torn = [places[number] for number in self.places]
        values = torn[0] if len(torn) == 1 else torch.cat(torn)
        if self.window is None:
            self.piece.region.write(_present(tensors[self.piece.tensor]), values)
        else:
            self.window.of(tensors).copy_(values.view(self.window.size))


_Choice: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Cuts:
    """Where vectors and gradients are cut; `cut` finds it. Parts are numbered in the order of what they are cut from.

    Attributes:
        lines: The lengths of the parts of each vector.
        splits: Gradients that are cut like vectors: the number of each, and the lengths of its parts.
        windows: Other parts of gradients, numbered after those of ``splits``.
        run_places, run_parts: Choose the parts that are copied as runs of memory, of the vectors and of the gradients.
        strided_places: Other parts of the vectors, each with the size in which it is copied.
        strided_parts: The parts of gradients that go there.
        alone: What is copied alone.
        zeros: The parts of the vectors that become zero.
    """

    lines: tuple[list[int], ...]
    splits: tuple[tuple[int, list[int]], ...]
    windows: tuple[_Window, ...]
    run_places: _Choice
    run_parts: _Choice
    strided_places: tuple[tuple[int, tuple[int, ...]], ...]
    strided_parts: tuple[int, ...]
    alone: tuple[_Alone, ...]
    zeros: tuple[int, ...]

    def places(self, lines: Sequence[Tensor]) -> list[Tensor]:
        """Returns the parts of the vectors."""
        return [
            place for line, lengths in zip(lines, self.lines, strict=True) for place in line.split_with_sizes(lengths)
        ]


class Views:
    """The parts of some vectors and gradients, ready to be copied.

    Args:
        cuts: Where they are cut.
        places: The parts of the vectors; see `Cuts.places`.
        tensors: The gradients; None for those that were missing when ``cuts`` was made.
    """

    def __init__(self, cuts: Cuts, places: Sequence[Tensor], tensors: Sequence[Tensor | None]) -> None:
        parts: list[Tensor] = []
        for number, lengths in cuts.splits:
            parts += _present(tensors[number]).view(-1).split_with_sizes(lengths)
        parts += [window.of(tensors) for window in cuts.windows]
        self._cuts, self._tensors, self._places = cuts, tensors, places
        self._runs = cuts.run_places(places), cuts.run_parts(parts)
        self._strided = (
            [places[number].view(size) for number, size in cuts.strided_places],
            [parts[number] for number in cuts.strided_parts],
        )

    def pack(self) -> None:
        """Copies the gradients into the vectors."""
        for places, parts in (self._runs, self._strided):
            _copy(places, parts)
        for one in self._cuts.alone:
            one.pack(self._tensors, self._places)
        if self._cuts.zeros:
            torch._foreach_zero_([self._places[number] for number in self._cuts.zeros])

    def unpack(self) -> None:
        """Copies what is in the vectors into the gradients."""
        for places, parts in (self._runs, self._strided):
            _copy(parts, places)
        for one in self._cuts.alone:
            one.unpack(self._tensors, self._places)


def cut(
    lengths: Sequence[int], parts: Iterable[Part], pieces: Sequence[Piece], geometries: Sequence[Geometry | None]
) -> Cuts:
    """Finds where vectors and gradients are cut.

    Args:
        lengths: The number of elements of each vector.
        parts: What lies there, those of each piece in their order.
        pieces: What is copied; they may overlap where they are only packed.
        geometries: The shape and the strides of each gradient; None for a missing one, whose places become zero.
    """
    parts = [part for part in parts if part.length]
    lines, place_of = _lines(lengths, parts)
    places: list[list[tuple[int, int]]] = [[] for _ in pieces]
    zeros = []
    for part in parts:
        if part.piece is None or geometries[pieces[part.piece].tensor] is None:
            zeros.append(place_of[part])
        else:
            places[part.piece].append((place_of[part], part.length))
    runs: list[list[tuple[int, int, int]]] = [[] for _ in geometries]
    strided, alone = list[tuple[int, _Window]](), list[_Alone]()
    for piece, those in zip(pieces, places, strict=True):
        geometry = geometries[piece.tensor]
        if geometry is None or not those:
            continue
        found = piece.region.window(geometry[1])
        window = None if found is None else _Window(piece.tensor, *found[:3])
        if window is not None and found is not None and found[3]:
            starts = accumulate((length for _, length in those), initial=window.offset)
            runs[piece.tensor] += [
                (start, length, place) for start, (place, length) in zip(starts, those, strict=False)
            ]
        elif window is not None and len(those) == 1:
            strided.append((those[0][0], window))
        else:
            alone.append(_Alone(piece, window, tuple(place for place, _ in those), tuple(size for _, size in those)))
    return _joined(lines, runs, strided, alone, zeros, geometries)


def _joined(
    lines: Sequence[list[int]],
    runs: Sequence[list[tuple[int, int, int]]],
    strided: Sequence[tuple[int, _Window]],
    alone: Sequence[_Alone],
    zeros: Sequence[int],
    geometries: Sequence[Geometry | None],
) -> Cuts:
    """Numbers the parts of gradients; ``runs`` has the start, length and place of each run in each gradient."""
    splits: list[tuple[int, list[int]]] = []
    windows: list[_Window] = []
    in_splits, in_windows = list[tuple[int, int]](), list[int]()  # the places of runs, each with its part, if known
    count = 0
    for number, (those, geometry) in enumerate(zip(runs, geometries, strict=True)):
        if geometry is None or not those:
            continue
        ordered = sorted(those)
        is_apart = all(start + length <= after for (start, length, _), (after, _, _) in pairwise(ordered))
        if is_apart and geometry[1] == _contiguous(geometry[0]):
            lengths, at = [], 0
            for start, length, place in ordered:
                if start > at:
                    lengths.append(start - at)
                in_splits.append((place, count + len(lengths)))
                lengths.append(length)
                at = start + length
            total = torch.Size(geometry[0]).numel()
            if total > at:
                lengths.append(total - at)
            splits.append((number, lengths))
            count += len(lengths)
        else:
            windows += [_Window(number, (length,), (1,), start) for start, length, _ in those]
            in_windows += [place for _, _, place in those]
    chosen = [*in_splits, *zip(in_windows, range(count, count + len(windows)), strict=True)]
    first = count + len(windows)
    windows += [window for _, window in strided]
    return Cuts(
        tuple(lines),
        tuple(splits),
        tuple(windows),
        _choice([place for place, _ in chosen]),
        _choice([part for _, part in chosen]),
        tuple((place, window.size) for place, window in strided),
        tuple(range(first, first + len(strided))),
        tuple(alone),
        tuple(zeros),
    )


def _lines(lengths: Sequence[int], parts: Iterable[Part]) -> tuple[list[list[int]], dict[Part, int]]:
    """Returns the lengths of the parts of each vector, gaps included, and the number of each part among them."""
    result: list[list[int]] = [[] for _ in lengths]
    ends = [0] * len(lengths)
    places: list[tuple[Part, int]] = []  # each with its number in its vector
    for part in sorted(parts, key=lambda part: part[:2]):
        mine = result[part.line]
        if part.start > ends[part.line]:
            mine.append(part.start - ends[part.line])
        places.append((part, len(mine)))
        mine.append(part.length)
        ends[part.line] = part.start + part.length
    for mine, end, length in zip(result, ends, lengths, strict=True):
        if length > end:
            mine.append(length - end)
    firsts = list(accumulate(map(len, result), initial=0))
    return result, {part: firsts[part.line] + number for part, number in places}


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the strides of a tensor of this shape that lies in one run of memory, in order."""
    return tuple(accumulate(reversed(shape[1:]), lambda step, size: step * size, initial=1))[::-1] if shape else ()


def _choice(numbers: Sequence[int]) -> _Choice:
    """Returns a function that returns the members with these numbers."""
    if len(numbers) > 1:
        return itemgetter(*numbers)
    return lambda members: [members[number] for number in numbers]


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # no part is of a missing one
    return tensor


def _copy(to: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
    if to:
        torch._foreach_copy_(list(to), list(parts))
