"""Vectors and gradients that are cut into parts, against one copy of each element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdp_compile.bench.one_of.calls import Calls
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.cutting.cuts import Part, Piece, Views, cut


@st.composite
def cases(draw: Any) -> tuple[list[Tensor | None], list[Piece], list[Part], list[int]]:
    """Gradients of any layout, pieces that cover some of each, and vectors in which they lie torn and out of order."""
    gradients: list[Tensor | None] = []
    pieces: list[Piece] = []
    for number in range(draw(st.integers(1, 3))):
        shape = draw(st.lists(st.integers(1, 6), max_size=3))
        order = draw(st.permutations(range(len(shape))))
        numel = int(np.prod(shape))
        memory = 1000.0 * (number + 1) + torch.arange(numel + 2)
        tensor = memory[2:].view([shape[dim] for dim in order]).permute([order.index(dim) for dim in range(len(shape))])
        gradients.append(tensor if draw(st.integers(0, 4)) else None)
        if not shape:
            pieces.append(Piece(number, Region([])))
            continue
        dim = draw(st.integers(0, len(shape) - 1))
        owner = np.array(draw(st.lists(st.integers(0, 2), min_size=shape[dim], max_size=shape[dim])))
        for one in range(draw(st.integers(1, 3))):
            index = [np.arange(size) for size in shape]
            index[dim] = np.flatnonzero(owner == one)
            pieces.append(Piece(number, Region(index)))
    pieces = draw(st.permutations(pieces))
    torn = []
    for number, piece in enumerate(pieces):
        left = piece.region.numel
        while left:
            length = draw(st.integers(1, left))
            torn.append((length, number))
            left -= length
    # The parts of a piece keep their order among the parts, not in memory.
    parts: dict[int, Part] = {}
    lengths = [0] * draw(st.integers(1, 3))
    for at in draw(st.permutations(range(len(torn)))):
        line = draw(st.integers(0, len(lengths) - 1))
        gap = draw(st.integers(0, 1))
        length, number = torn[at]
        parts[at] = Part(line, lengths[line] + gap, length, number)
        lengths[line] += gap + length
    zeros = [Part(line, length, 1, None) for line, length in enumerate(lengths)]
    return gradients, pieces, [*(parts[at] for at in range(len(torn))), *zeros], [length + 3 for length in lengths]


def by_element(
    gradients: Sequence[Tensor | None], pieces: Sequence[Piece], parts: Sequence[Part], lines: list[Tensor]
) -> None:
    """Packs one element after the other."""
    values: list[list[float]] = []
    for piece in pieces:
        gradient = gradients[piece.tensor]
        numel = piece.region.numel
        values.append([0.0] * numel if gradient is None else piece.region.read(gradient).reshape(-1).tolist())
    for part in parts:
        for at in range(part.start, part.start + part.length):
            lines[part.line][at] = 0 if part.piece is None else values[part.piece].pop(0)
    assert not any(values)


@settings(deadline=None, max_examples=300)
@given(cases(), st.sampled_from([torch.float32, torch.float64]))
def test_what_is_packed_and_unpacked(
    case: tuple[list[Tensor | None], list[Piece], list[Part], list[int]], dtype: torch.dtype
) -> None:
    gradients, pieces, parts, lengths = case
    cuts = cut(lengths, parts, pieces, [None if one is None else (one.shape, one.stride()) for one in gradients])
    lines = [torch.full((length,), -1.0, dtype=dtype) for length in lengths]
    wanted = [line.clone() for line in lines]
    Views(cuts, cuts.places(lines), gradients).pack()
    by_element(gradients, pieces, parts, wanted)
    for line, other in zip(lines, wanted, strict=True):
        assert torch.equal(line, other)
    before = [None if one is None else one.clone() for one in gradients]
    Views(cuts, cuts.places([line * 10 for line in lines]), gradients).unpack()
    for number, (one, old) in enumerate(zip(gradients, before, strict=True)):
        if one is None or old is None:
            continue
        for piece in pieces:
            if piece.tensor == number:
                piece.region.write(old, piece.region.read(old) * 10)
        assert torch.equal(one, old)


def test_a_step_calls_few_operators() -> None:
    """However many pieces there are: those of a gradient in one run of memory are cut, and copied, at once."""
    gradient, line, few = torch.randn(64, 3), torch.zeros(192), Calls()
    pieces = [Piece(0, Region([np.arange(8 * one, 8 * one + 8), np.arange(3)])) for one in range(8)]
    parts = [Part(0, 168 - 24 * number, 24, number) for number in range(8)]
    cuts = cut([192], parts, pieces, [(gradient.shape, gradient.stride())])
    with few:
        Views(cuts, cuts.places([line]), [gradient]).pack()
    assert (few.views, few.others) == (3, 1)
    assert torch.equal(line.view(8, -1), gradient.view(8, -1).flip(0))
