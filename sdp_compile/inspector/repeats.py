"""Finds the stretches of a program that repeat an earlier layer and differ in names only."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from sdp_compile.inspector.rows import Row

_NUMBERED = re.compile(r"(?<![^.])\d+(?![^.])")
_REFERENCE = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?![\w.(=])")  # neither an operator nor a keyword

LEAST_ROWS = 5
"""Shorter stretches are quicker to read than a fold, unless they continue one."""


@dataclass(frozen=True)
class Fold:
    """``rows`` rows, starting with ``first``, that make up ``layers`` and repeat the rows of the layer ``like``."""

    first: int
    rows: int
    layers: tuple[str, ...]
    like: str


def folds(rows: Sequence[Row], marks: Sequence[Hashable] | None = None) -> tuple[Fold, ...]:
    """Finds the stretches to fold.

    A stretch is a run of rows of one numbered module, such as ``h.0`` or ``stages.2.blocks.1``. Two stretches in the
    same container are alike if they have the same operators, constants, shapes and wiring, and read tensors of the same
    names within the layer. Inputs from outside the layer count by their shape only. Consecutive stretches that repeat
    the same layer form one fold. Stretches that do not fold are searched for numbered modules inside them.

    Args:
        rows: The rows of a program in reading order.
        marks: What else must agree for two rows to be alike, one per row.
    """
    result: list[Fold] = []
    _Finder(rows, marks or [None] * len(rows), result).search(0, len(rows), 0)
    return tuple(result)


@dataclass(frozen=True)
class _Finder:
    rows: Sequence[Row]
    marks: Sequence[Hashable]
    result: list[Fold]

    def search(self, start: int, stop: int, depth: int) -> None:
        known: dict[Hashable, str] = {}
        for layer, first, count in _stretches(self.rows, start, stop, depth):
            if not layer:
                continue
            inside = slice(first, first + count)
            like = known.setdefault(_key(layer, self.rows[inside], self.marks[inside]), layer)
            last = self.result[-1] if self.result else None
            follows = last is not None and last.first + last.rows == first
            if like != layer and (count >= LEAST_ROWS or follows):
                self.fold(first, count, layer, like, last if follows else None)
            else:
                self.search(first, first + count, depth + 1)

    def fold(self, first: int, count: int, layer: str, like: str, last: Fold | None) -> None:
        if last is not None and last.like == like:
            self.result[-1] = Fold(last.first, last.rows + count, (*last.layers, layer), like)
        else:
            self.result.append(Fold(first, count, (layer,), like))


def layer_of(module: str, depth: int = 0) -> str:
    """Returns the numbered module around a module: ``h.0`` for ``h.0.attn``; "" if none is numbered at this depth."""
    match = next(islice(_NUMBERED.finditer(module), depth, None), None)
    return "" if match is None else module[: match.end()]


def _stretches(rows: Sequence[Row], start: int, stop: int, depth: int) -> Iterator[tuple[str, int, int]]:
    """Yields (layer, first row, number of rows) for each run of rows of one layer."""
    for layer, group in groupby(range(start, stop), key=lambda number: layer_of(rows[number].module, depth)):
        numbers = list(group)
        yield layer, numbers[0], len(numbers)


def _key(layer: str, stretch: Sequence[Row], marks: Sequence[Hashable]) -> Hashable:
    container = layer.rpartition(".")[0]
    numbers = {row.name: number for number, row in enumerate(stretch)}
    return (
        container,
        tuple(
            (
                row.module.removeprefix(layer),
                row.kind,
                row.target if row.kind != "state" else row.code.removeprefix(f"self.{layer}."),
                _local(row, layer, numbers),
                row.full_shape,
                row.shape,
                row.dtype,
                row.source,
            )
            for row in stretch
        ),
        tuple(marks),
    )


def _local(row: Row, layer: str, numbers: dict[str, int]) -> str:
    """The row's code with names that are the same in every layer."""
    if row.kind == "state":
        return ""

    def local(match: re.Match[str]) -> str:
        name = match[0]
        return name if name not in row.inputs else f"%{numbers[name]}" if name in numbers else "%"

    return _REFERENCE.sub(local, row.code.replace(f"self.{layer}.", "self."))
