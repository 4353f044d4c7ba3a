"""The view ``graph`` on a terminal: code, grouped by module and by line of the user's source."""

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

MOST_REDUCTIONS = 8
"""All-reduces that are shown one by one; a large model has one per bucket, which can be hundreds."""

_LONG_CALL = 6
"""State tensors of one call that are all written out; an all-reduce can have hundreds."""


def render_graph(view: GraphView, unfold: bool = False) -> RenderableType:
    """Renders the rewritten graph; ``unfold`` writes out layers that repeat an earlier one."""
    title = heading(
        view.model, f"worker {view.rank} of {view.workers}", view.mode, view.lowering, f"{view.nodes:,} nodes"
    )
    return Group(title, legend(view.counts), Lines(list(_lines(view, unfold))))


def legend(counts: Mapping[str, int]) -> Text:
    """Counts what the passes inserted (+) and changed (~), each kind in its colour."""
    text = Text()
    for kind, word in WORDS.items():
        if counts.get(kind):
            text.append("   " if text else "").append(f"{GUTTER[kind]} {counts[kind]} {word}", style=KINDS[kind])
    return text or Text("The captured graph: the passes changed nothing.", style=DIM)


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
            reductions = list(takewhile(lambda one: one.kind == "sync", view.rows[position:]))
            yield from (_reduction_line(one) for one in first_of_each_owners(reductions))
            position += len(reductions)
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
    """Returns the folds that follow each other directly, starting at a row."""
    result = []
    while position in folded:
        result.append(folded[position])
        position += folded[position].rows
    return result


def first_of_each_owners(reductions: Sequence[Row]) -> Iterator[Row | str]:
    """Yields the all-reduces, or if there are many the first of each owner set and how many more it has."""
    if len(reductions) <= MOST_REDUCTIONS:
        yield from reductions
        return
    by_owners: dict[str, list[Row]] = {}
    for row in reductions:
        by_owners.setdefault(row.code.rpartition("owners=")[2].removesuffix(")"), []).append(row)
    for owners, rows in by_owners.items():
        yield rows[0]
        if rows[1:]:
            yield f"{len(rows) - 1:,} more for owners={owners}"


def _reduction_line(shown: Row | str) -> Line:
    return Line(row_text(shown), indent=2) if isinstance(shown, Row) else Line(more_text(shown), indent=4)


def more_text(words: str) -> Text:
    """Renders what `first_of_each_owners` leaves out."""
    return Text(f"⋮ {words}", style="blue")


def module_text(row: Row, model: str) -> Text:
    """Renders the module of the rows below, and its class."""
    return Text.assemble((row.module or "forward", MODULE), (f"  {row.module_type or model}", DIM))


def source_text(row: Row) -> Text:
    """Renders the user's line that a row comes from."""
    return Text(f"# {row.source}  {row.line}", style=DIM)


def folds_text(folds: Sequence[Fold]) -> Text:
    """Renders which layers are folded, and which earlier layer they repeat."""
    layers = list(dict.fromkeys(layer for fold in folds for layer in fold.layers))
    likes = list(dict.fromkeys(fold.like for fold in folds))
    alike = " or ".join(likes) if len(likes) <= 3 else f"{likes[0]} or one of {len(likes) - 1} others"
    times = f": x {len(layers)}, " if len(layers) > 1 else ": "
    words = f"{span(sorted(layers, key=_numbers))}{times}alike {alike}"
    rows = counted(sum(fold.rows for fold in folds), "row")
    return Text.assemble((words, "italic magenta"), (f"  ({rows})", DIM))


def _numbers(layer: str) -> tuple[int, ...]:
    return tuple(int(part) for part in layer.split(".") if part.isdigit())


def row_text(row: Row) -> Text:
    """Renders one row as code, with + or ~ in front if a pass inserted or changed it."""
    return Text(f"{GUTTER.get(row.kind, ' ')} {statement(row)}", style=KINDS[row.kind])


def statement(row: Row) -> str:
    """Returns ``name = call``, with ``self.weight`` for tensors of the row's module and full names for all others."""
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
    """An all-reduce of many tensors: their number, the first of them, and its keywords."""
    call, _, arguments = row.code.partition("(")
    keywords = arguments.rpartition(f"self.{row.state[-1]}, ")[2]
    return f"{call}({counted(len(row.state), 'tensor')}: self.{row.state[0]}, ..., {keywords}"
