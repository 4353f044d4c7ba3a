"""The rewritten graph as compact data for the page's script, which lists, folds and searches it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdp_compile.inspector.graph import GraphView
    from sdp_compile.inspector.rows import Row

MOST_ROWS = 2000
"""Beyond this many rows, repeated layers are left out: an 80-layer model has 7,000 rows, of which 150 differ."""


def listing(view: GraphView) -> dict[str, Any]:
    """Returns the rows, folds, modules and sources of a graph.

    Each row is a list of (name, code, kind, module, shape, full shape, dtype, source, inputs), where module and source
    are indices into ``modules`` and ``sources``, and inputs are indices of rows. Each fold is a list of (first row,
    rows held, layers, like, rows in the graph); if its rows are left out, it holds 0 rows.
    """
    left_out: set[int] = set()
    if len(view.rows) > MOST_ROWS:
        left_out = {row for fold in view.folds for row in range(fold.first, fold.first + fold.rows)}
    positions: dict[int, int] = {}
    for row in range(len(view.rows)):
        if row not in left_out:
            positions[row] = len(positions)
    inputs: dict[int, list[int]] = {}
    for start, end in view.edges:
        if start in positions and end in positions:
            inputs.setdefault(end, []).append(positions[start])
    modules, sources = _Table(), _Table()
    return {
        "rows": [
            [
                row.name,
                row.code,
                kind(row),
                modules.number((row.module, row.module_type)),
                None if row.shape is None else list(row.shape),
                None if row.full_shape is None or not row.resized else list(row.full_shape),
                row.dtype,
                sources.number((row.source, row.line)),
                inputs.get(number, []),
            ]
            for number, row in enumerate(view.rows)
            if number in positions
        ],
        "folds": [
            [
                sum(position < fold.first for position in positions) if left_out else fold.first,
                0 if left_out else fold.rows,
                list(fold.layers),
                fold.like,
                fold.rows,
            ]
            for fold in view.folds
        ],
        "modules": modules.entries,
        "sources": sources.entries,
    }


def kind(row: Row) -> str:
    """Returns the row's kind, or ``"sliced"`` for a tensor of which the worker holds a part."""
    return "sliced" if row.kind == "state" and row.resized else row.kind


class _Table:
    """Numbers values in the order of their first appearance."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def number(self, value: tuple[str, str]) -> int:
        return self._numbers.setdefault(value, len(self._numbers))

    @property
    def entries(self) -> list[list[str]]:
        return [list(value) for value in self._numbers]
