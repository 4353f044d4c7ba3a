"""The view ``diff`` on a terminal: unified or side by side, with unchanged stretches folded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from itertools import takewhile

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdp_compile.inspector.diff import DiffLine, DiffView
from sdp_compile.inspector.render.graph import (
    first_of_each_owners,
    folds_text,
    following,
    module_text,
    more_text,
    source_text,
    statement,
)
from sdp_compile.inspector.render.lines import Line, Lines, SideBySide
from sdp_compile.inspector.render.style import DIM, KINDS, counted, heading, shape_text
from sdp_compile.inspector.repeats import Fold

_WORD = re.compile(r"[\w.]+|\s+|.")
_OLD, _NEW = "red", "green"

Item = DiffLine | list[Fold] | int | str
"""What is shown: a line, folded layers, a number of unchanged rows, or a note about several all-reduces."""


def render_diff(view: DiffView, unfold: bool = False, side_by_side: bool = False) -> RenderableType:
    """Renders what the passes changed; ``unfold`` writes out layers that repeat an earlier one."""
    title = heading(
        view.model, f"worker {view.rank} of {view.workers}", view.mode, view.lowering, view.pass_ or "all passes"
    )
    items = list(_items(view, unfold))
    body: RenderableType
    if not any(isinstance(item, DiffLine) for item in items):
        body = Text("The passes change nothing.", style=DIM)
    else:
        body = _side_by_side(items, view.model) if side_by_side else Lines(list(_unified(items, view.model)))
    return Group(title, *([_steps(view)] if view.pass_ is None and view.module is None else []), _counts(view), body)


def _steps(view: DiffView) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("pass", no_wrap=True)
    for name in ("nodes", "after", "inserted", "removed", "changed", "sliced"):
        table.add_column(name, justify="right")
    for step in view.steps:
        figures = (step.inserted, step.removed, step.changed, step.sliced)
        cells = [f"{figure:,}" if figure else "" for figure in figures]
        nodes = f"{step.nodes_before:,}", f"{step.nodes_after:,}"
        table.add_row(Text(step.pass_), *nodes, *cells, style="" if any(figures) else DIM)
    return table


def _counts(view: DiffView) -> Text:
    text = Text(f"+ {view.inserted} inserted", style=KINDS["sync"])
    text.append(f"   - {view.removed} removed", style=_OLD).append(f"   ± {view.changed} changed", style=_NEW)
    return text.append(f"   ~ {view.sliced} sliced", style="cyan")


def _items(view: DiffView, unfold: bool) -> Iterator[Item]:
    """Yields the changed lines in order, and what lies between them."""
    folded = {} if unfold else {fold.first: fold for fold in view.folds if _is_changed(view, fold)}
    position = unchanged = 0
    while position < len(view.lines):
        line, adjacent = view.lines[position], following(folded, position)
        if line.change == "same" and not adjacent:
            unchanged, position = unchanged + 1, position + 1
            continue
        if unchanged:
            yield unchanged
            unchanged = 0
        reductions = list(takewhile(_is_inserted_reduction, view.lines[position:])) if not unfold else []
        if adjacent:
            yield adjacent
            position = adjacent[-1].first + adjacent[-1].rows
        elif reductions:
            lines = {one.row.name: one for one in reductions}
            for shown in first_of_each_owners([one.row for one in reductions]):
                yield shown if isinstance(shown, str) else lines[shown.name]
            position += len(reductions)
        else:
            yield line
            position += 1
    if unchanged:
        yield unchanged


def _is_changed(view: DiffView, fold: Fold) -> bool:
    return any(line.change != "same" for line in view.lines[fold.first : fold.first + fold.rows])


def _is_inserted_reduction(line: DiffLine) -> bool:
    return line.change == "insert" and line.row.kind == "sync"


def _unified(items: list[Item], model: str) -> Iterator[Line]:
    module: str | None = None
    source = ""
    for item in items:
        if isinstance(item, list):
            yield Line(folds_text(item), indent=2)
            module = None
            continue
        if isinstance(item, str):
            yield Line(more_text(item), indent=4)
            continue
        if isinstance(item, int):
            yield Line(Text(f"⋮ {counted(item, 'row')} unchanged", style=DIM), indent=2)
            continue
        row = item.row
        if row.module != module and row.kind != "sync":
            module, source = row.module, ""
            yield Line(module_text(row, model))
        if row.source and row.source != source:
            source = row.source
            yield Line(source_text(row), indent=4, whole=False)
        shape = shape_text(row.full_shape, row.shape)
        if item.change == "slice":
            yield Line(Text(f"~ {statement(row)}", style="cyan"), shape, indent=2)
        elif item.change == "insert":
            yield Line(Text(f"+ {statement(row)}", style=KINDS[row.kind]), shape, indent=2)
        elif item.change == "remove":
            yield Line(Text(f"- {statement(row)}", style=_OLD), shape, indent=2)
        else:
            old, new = marked(item)
            yield Line(Text("- ", style=_OLD).append_text(old), indent=2)
            yield Line(Text("+ ", style=_NEW).append_text(new), shape, indent=2)


def marked(line: DiffLine) -> tuple[Text, Text]:
    """Returns the row before and after, with the words that differ in bold."""
    assert line.before is not None and line.after is not None
    old, new = (_WORD.findall(statement(row)) for row in (line.before, line.after))
    left, right = Text(style=_OLD), Text(style=_NEW)
    for tag, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        style = None if tag == "equal" else "bold underline"
        left.append("".join(old[a:b]), style=style)
        right.append("".join(new[c:d]), style=style)
    return left, right


def _side_by_side(items: list[Item], model: str) -> SideBySide:
    rows: list[tuple[Text, Text | None]] = [(Text("before", style="italic"), Text("after", style="italic"))]
    module: str | None = None
    for item in items:
        if isinstance(item, list):
            rows.append((folds_text(item), None))
            module = None
            continue
        if isinstance(item, str):
            rows.append((Text(), more_text(item)))
            continue
        if isinstance(item, int):
            rows.append((Text(f"⋮ {counted(item, 'row')} unchanged", style=DIM), None))
            continue
        row = item.row
        if row.module != module and row.kind != "sync":
            module = row.module
            rows.append((module_text(row, model), None))
        rows.append(_pair(item))
    return SideBySide(rows)


def _pair(line: DiffLine) -> tuple[Text, Text]:
    if line.change == "change":
        return marked(line)
    style = {"insert": KINDS[line.row.kind], "remove": _OLD, "slice": "cyan"}[line.change]
    left, right = (Text() if row is None else Text(statement(row), style=style) for row in (line.before, line.after))
    if line.change == "slice" and line.before is not None and line.after is not None:
        left.append(f" {list(line.before.shape or ())}")
        right.append(" ").append_text(shape_text(line.after.full_shape, line.after.shape))
    return left, right
