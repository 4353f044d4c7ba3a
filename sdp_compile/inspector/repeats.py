"""Which stretches of a program repeat an earlier layer in all but names."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from sdp_compile.inspector.rows import Row

_NUMBERED = re.compile(r"(?<![^.])\d+(?![^.])")
_REFERENCE = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?![\w.(=])")  # neither an operator nor a keyword

LEAST_ROWS = 5
"""Shorter stretches are read faster than the line that would stand for them, unless that line is there already."""


@dataclass(frozen=True)
class Fold:
    """``rows`` rows from ``first`` on, which make up ``layers``, repeat those of the layer ``like``."""

    first: int
    rows: int
    layers: tuple[str, ...]
    like: str


def folds(rows: Sequence[Row], marks: Sequence[Hashable] | None = None) -> tuple[Fold, ...]:
    """The stretches to fold. ``marks`` are what else of each row must agree.

    A stretch is a run of rows of one numbered module, such as ``h.0`` or ``stages.2.blocks.1``. Two of one container
    are alike if they have the same operators, constants and shapes, read each other's results in the same places, and
    read tensors of the same names within the layer; what comes from outside of the layer counts by its shape alone.
    Folded stretches that follow one another are one fold for each layer that they are alike. Within a stretch that is
    not folded the next numbered modules are looked at.
    """
    found: list[Fold] = []
    _Finder(rows, marks or [None] * len(rows), found).look(0, len(rows), 0)
    return tuple(found)


@dataclass(frozen=True)
class _Finder:
    rows: Sequence[Row]
    marks: Sequence[Hashable]
    found: list[Fold]

    def look(self, start: int, stop: int, depth: int) -> None:
        known: dict[Hashable, str] = {}
        for layer, first, count in _stretches(self.rows, start, stop, depth):
            if not layer:
                continue
            inside = slice(first, first + count)
            like = known.setdefault(_key(layer, self.rows[inside], self.marks[inside]), layer)
            last = self.found[-1] if self.found else None
            follows = last is not None and last.first + last.rows == first
            if like != layer and (count >= LEAST_ROWS or follows):
                self.fold(first, count, layer, like, last if follows else None)
            else:
                self.look(first, first + count, depth + 1)

    def fold(self, first: int, count: int, layer: str, like: str, last: Fold | None) -> None:
        if last is not None and last.like == like:
            self.found[-1] = Fold(last.first, last.rows + count, (*last.layers, layer), like)
        else:
            self.found.append(Fold(first, count, (layer,), like))


def layer_of(module: str, depth: int = 0) -> str:
    """The numbered module around one, outermost first: ``h.0`` of ``h.0.attn``; "" if there is none at this depth."""
    match = next(islice(_NUMBERED.finditer(module), depth, None), None)
    return "" if match is None else module[: match.end()]


def _stretches(rows: Sequence[Row], start: int, stop: int, depth: int) -> Iterator[tuple[str, int, int]]:
    """(layer, first row, number of rows) of each run of rows of one layer."""
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
    """The row's code with names that do not depend on the layer."""
    if row.kind == "state":
        return ""

    def local(match: re.Match[str]) -> str:
        name = match[0]
        return name if name not in row.inputs else f"%{numbers[name]}" if name in numbers else "%"

    return _REFERENCE.sub(local, row.code.replace(f"self.{layer}.", "self."))
