"""The view ``graph`` on a terminal: code, by module and by line of the user's source."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile

from rich.console import Group, RenderableType
from rich.text import Text

from sdp_compile.inspector.graph import GraphView
from sdp_compile.inspector.render.lines import Line, Lines
from sdp_compile.inspector.render.style import DIM, GUTTER, KINDS, MODULE, WORDS, counted, heading, shape_text, span
from sdp_compile.inspector.repeats import Fold
from sdp_compile.inspector.rows import Row

MOST_MARKS = 8
"""Marks of reductions that are all shown; a large model has one for each 25 MiB."""

_LONG_CALL = 6
"""State tensors in one call that are all written out; the mark of a reduction can name hundreds."""


def render_graph(view: GraphView, unfold: bool = False) -> RenderableType:
    """The rewritten graph; ``unfold`` writes out the layers that repeat an earlier one."""
    title = heading(
        view.model, f"worker {view.rank} of {view.workers}", view.mode, view.lowering, f"{view.nodes:,} nodes"
    )
    return Group(title, legend(view.counts), Lines(list(_lines(view, unfold))))


def legend(counts: Mapping[str, int]) -> Text:
    """What passes inserted (+) and changed (~), each kind in its colour."""
    text = Text()
    for kind, word in WORDS.items():
        if counts.get(kind):
            text.append("   " if text else "").append(f"{GUTTER[kind]} {counts[kind]} {word}", style=KINDS[kind])
    return text or Text("The captured graph as it is: nothing was rewritten.", style=DIM)


def _lines(view: GraphView, unfold: bool) -> Iterator[Line]:
    folded = {} if unfold else {fold.first: fold for fold in view.folds}
    module: str | None = None
    source = ""
    position = 0
    while position < len(view.rows):
        adjacent = following(folded, position)
        if adjacent:
            yield Line(folds_text(adjacent), indent=2)
            position, module = adjacent[-1].first + adjacent[-1].rows, None
            continue
        row = view.rows[position]
        if row.kind == "sync" and not unfold:
            marks = list(takewhile(lambda one: one.kind == "sync", view.rows[position:]))
            yield from (_mark_line(one) for one in gathered(marks))
            position += len(marks)
            continue
        if row.module != module and row.kind != "sync":
            module, source = row.module, ""
            yield Line(module_text(row, view.model))
        if row.source and row.source != source:
            source = row.source
            yield Line(source_text(row), indent=4, whole=False)
        yield Line(row_text(row), shape_text(row.full_shape, row.shape), indent=2)
        position += 1


def following(folded: Mapping[int, Fold], position: int) -> list[Fold]:
    """The folds that follow one another from a row on."""
    result = []
    while position in folded:
        result.append(folded[position])
        position += folded[position].rows
    return result


def gathered(marks: Sequence[Row]) -> Iterator[Row | str]:
    """The marks of reductions; of many the first of each owner set, and how many more there are."""
    if len(marks) <= MOST_MARKS:
        yield from marks
        return
    by_owners: dict[str, list[Row]] = {}
    for row in marks:
        by_owners.setdefault(row.code.rpartition("owners=")[2].removesuffix(")"), []).append(row)
    for owners, rows in by_owners.items():
        yield rows[0]
        if rows[1:]:
            yield f"{len(rows) - 1:,} more for owners={owners}"


def _mark_line(mark: Row | str) -> Line:
    return Line(row_text(mark), indent=2) if isinstance(mark, Row) else Line(more_text(mark), indent=4)


def more_text(words: str) -> Text:
    """What `gathered` leaves out."""
    return Text(f"⋮ {words}", style="blue")


def module_text(row: Row, model: str) -> Text:
    """The module that the following rows belong to, and its class."""
    return Text.assemble((row.module or "forward", MODULE), (f"  {row.module_type or model}", DIM))


def source_text(row: Row) -> Text:
    """The user's line that made a row."""
    return Text(f"# {row.source}  {row.line}", style=DIM)


def folds_text(folds: Sequence[Fold]) -> Text:
    """What is folded, and where it can be read instead."""
    layers = list(dict.fromkeys(layer for fold in folds for layer in fold.layers))
    likes = list(dict.fromkeys(fold.like for fold in folds))
    alike = " or ".join(likes) if len(likes) <= 3 else f"{likes[0]} or one of {len(likes) - 1} others"
    times = f": x {len(layers)}, " if len(layers) > 1 else ": "
    words = f"{span(sorted(layers, key=_numbers))}{times}alike {alike}"
    rows = counted(sum(fold.rows for fold in folds), "row")
    return Text.assemble((words, "italic magenta"), (f"  ({rows})", DIM))


def _numbers(layer: str) -> tuple[int, ...]:
    return tuple(int(part) for part in layer.split(".") if part.isdigit())


def row_text(row: Row, gutter: str | None = None, style: str | None = None) -> Text:
    """One row as code, with its mark."""
    chosen = KINDS[row.kind] if style is None else style
    mark = GUTTER.get(row.kind, " ") if gutter is None else gutter
    return Text(f"{mark} ", style=chosen).append(statement(row), style=chosen)


def statement(row: Row) -> str:
    """``name = call``. Tensors of the row's module are written ``self.weight``, all others by their whole name."""
    code = row.code
    if len(row.state) > _LONG_CALL and row.target.endswith("all_reduce_mean"):
        code = _abridged(row)
    for name in sorted(row.state if row.kind != "state" else (code.removeprefix("self."),), key=len, reverse=True):
        code = _written(code, name, row.module)
    if row.kind == "input":
        return row.name
    if row.kind == "mask":
        return f"{code.partition('(')[2].removesuffix(')')} = {code}"
    return code if row.kind in ("state", "sync", "output") else f"{row.name} = {code}"


def _written(code: str, name: str, module: str) -> str:
    own = f"{module}." if module else ""
    short = f"self.{name.removeprefix(own)}" if own and name.startswith(own) else name
    return re.sub(rf"(?<![\w.])self\.{re.escape(name)}(?![\w.])", lambda _: short, code)


def _abridged(row: Row) -> str:
    """The mark of a reduction of many tensors: their number, the first, and who reduces them."""
    call, _, arguments = row.code.partition("(")
    keywords = arguments.rpartition(f"self.{row.state[-1]}, ")[2]
    return f"{call}({counted(len(row.state), 'tensor')}: self.{row.state[0]}, ..., {keywords}"
