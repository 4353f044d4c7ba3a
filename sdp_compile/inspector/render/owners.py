"""The view ``owners`` on a terminal: a heat map of families and workers, and strips of the units that each owns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

import numpy as np
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from sdp_compile.formatting import size
from sdp_compile.inspector.owners import OwnedFamily, OwnersView
from sdp_compile.inspector.plain import ranges
from sdp_compile.inspector.render.lines import Line, Lines
from sdp_compile.inspector.render.style import (
    DIM,
    counted,
    grouped_by_like,
    heading,
    owners_text,
    times_text,
    workers_text,
)
from sdp_compile.ownership.owners import is_member

CELL = 5
"""Width of a cell of the heat map, in columns."""

MOST_FAMILIES, MOST_STRIPS, MOST_SETS, MOST_COLUMNS = 16, 3, 16, 16

MOST_NAMES = 32
"""Most blocks listed by name below their strip."""

SHADES = "·░▒▓█"
"""A strip's cell for units owned not at all, in part (three shades) and completely."""

_NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def render_owners(view: OwnersView) -> RenderableType:
    """Renders who owns what. Workers that own the same units share a column, alike families share a row."""
    coverage = view.coverage
    owners = "" if coverage is None else owners_text(coverage.min, coverage.mean, coverage.max)
    title = heading(view.model, counted(view.workers, "worker"), owners, f"{view.shared:.1%} shared by all")
    if not view.families:
        return Group(title, Text("Nothing is cut: every worker owns the whole model.", style=DIM))
    return Group(title, Text(), _Body(view))


class Columns:
    """The columns of the heat map: classes of workers, or several classes each if there are too many."""

    def __init__(self, view: OwnersView, most: int) -> None:
        count = len(view.classes)
        columns = min(count, max(most, 1), len(_NAMES))
        edges = [round(number * count / columns) for number in range(columns + 1)]
        self.classes = [range(*pair) for pair in pairwise(edges)]
        single = all(len(one.workers) == 1 for one in view.classes) and columns == count
        self.names = [f"w{one.workers[0]}" for one in view.classes] if single else list(_NAMES[:columns])
        self.workers = [sorted(w for number in part for w in view.classes[number].workers) for part in self.classes]

    def mean(self, column: int, figures: Sequence[float]) -> float:
        part = self.classes[column]
        return sum(figures[number] for number in part) / len(part)


class _Body:
    """Heat map, workers, strips and owner sets over the same columns, as many as fit."""

    def __init__(self, view: OwnersView) -> None:
        self.view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        columns = Columns(self.view, min(MOST_COLUMNS, (width - 12 - min(34, width // 3)) // CELL))
        yield Lines(list(_heat_map(self.view, columns)))
        yield Text()
        yield Lines(list(_workers(self.view, columns)))
        yield Text()
        yield Lines(list(_strips(self.view, columns, width)))
        yield Lines(list(_sets(self.view, columns)))


def _heat_map(view: OwnersView, columns: Columns) -> Iterator[Line]:
    """One row per kind of family: the share of its bytes that the workers of each column hold."""
    names = "".join(f"{name:>{CELL}}" for name in columns.names)
    yield Line(Text("Share owned per worker", style="italic"), Text(f"units owners{names}", style="italic"))
    groups = grouped_by_like(view.families)
    for group in groups[:MOST_FAMILIES]:
        first = group[0]
        left = Text(first.name).append(times_text(len(group)), style="italic magenta")
        least, most = first.owners
        right = Text(f"{first.units:>5} {least if least == most else f'{least}-{most}':>6}")
        for column in range(len(columns.names)):
            share = columns.mean(column, first.loads)
            right.append(f"{share:>{CELL}.0%}" if share else f"{'·':>{CELL}}", style=heat(share))
        yield Line(left, right)
    rest = groups[MOST_FAMILIES:]
    if rest:
        yield Line(Text(f"{sum(map(len, rest))} more families of {len(rest)} kinds; see --json", style=DIM))


def heat(share: float) -> str:
    """Returns a colour for a share from 0 (the terminal's background) to 1 (full green)."""
    if share <= 0:
        return DIM
    level = min(max(share, 0.0), 1.0)
    return f"bold white on rgb({int(30 - 10 * level)},{int(60 + 90 * level)},{int(50 + 20 * level)})"


def _workers(view: OwnersView, columns: Columns) -> Iterator[Line]:
    """The workers of each column of the heat map."""
    yield Line(Text("Workers", style="italic"), Text("parameters owned", style="italic"))
    for number, (name, workers) in enumerate(zip(columns.names, columns.workers, strict=True)):
        share = columns.mean(number, [one.share for one in view.classes])
        nbytes = columns.mean(number, [one.parameters for one in view.classes])
        kinds = len(columns.classes[number])
        left = Text("" if name.startswith("w") else f"{name}  ", style="bold")
        left.append(workers_text(workers), style="not bold").append(
            f"  of {kinds} kinds" if kinds > 1 else "", style=DIM
        )
        yield Line(left, Text(f"{size(nbytes):>10} {share:>7.1%}"))


def _strips(view: OwnersView, columns: Columns, width: int) -> Iterator[Line]:
    """For the largest families, the units that the workers of each column own."""
    for group in grouped_by_like(view.families)[:MOST_STRIPS]:
        first = group[0]
        title = Text(f"Units 0 to {first.units - 1} of ", style="italic").append(first.name, style="bold not italic")
        yield Line(title.append(times_text(len(group)), style="not bold magenta"))
        for column, name in enumerate(columns.names):
            shares = _strip(view, first, columns, column, max(width - 6, 8))
            yield Line(Text(f"{name:>4}  ", style="bold").append_text(shares))
        if 0 < len(first.unit_names) <= MOST_NAMES:
            named = ", ".join(f"{number} {name}" for number, name in enumerate(first.unit_names))
            yield Line(Text(named, style=DIM), indent=6)
        yield Line(Text())


def _strip(view: OwnersView, family: OwnedFamily, columns: Columns, column: int, width: int) -> Text:
    """A family's units as cells, shaded by the share of a column's workers that own them."""
    cells = min(width, family.units * max(1, min(8, width // family.units)))
    held = np.zeros(cells)
    classes = [view.classes[number].workers[0] for number in columns.classes[column]]
    for run in family.runs:
        share = sum(is_member(worker, view.sets[run.owners]) for worker in classes) / len(classes)
        start, stop = run.first * cells / family.units, (run.first + run.units) * cells / family.units
        edges = np.clip(np.arange(cells + 1), start, stop)
        held += share * np.diff(edges)
    text = Text()
    for shade, run_of in groupby(map(_shade, held.tolist())):
        text.append(shade * len(list(run_of)), style=DIM if shade == SHADES[0] else "green")
    return text


def _shade(share: float) -> str:
    inner = SHADES[1:-1]
    return SHADES[0] if share < 0.01 else SHADES[-1] if share > 0.99 else inner[int(share * len(inner))]


def _sets(view: OwnersView, columns: Columns) -> Iterator[Line]:
    """The owner sets, and how many bytes of the cut parameters each of them owns."""
    runs = {family.name: family.runs for family in view.families}
    nbytes = [0] * len(view.sets)
    for family in view.families:
        for run in runs[family.like or family.name]:
            nbytes[run.owners] += run.nbytes
    yield Line(Text("Owner sets", style="italic"), Text("workers      bytes", style="italic"))
    order = sorted(range(len(view.sets)), key=lambda number: (-nbytes[number], view.sets[number]))
    for number in order[:MOST_SETS]:
        owners = view.sets[number]
        yield Line(Text(_members(owners, columns)), Text(f"{len(owners):>7,} {size(nbytes[number]):>10}"))
    rest = order[MOST_SETS:]
    if rest:
        yield Line(Text(f"{len(rest)} more", style=DIM), Text(size(sum(nbytes[number] for number in rest)), style=DIM))


def _members(owners: Sequence[int], columns: Columns) -> str:
    """The columns that make up an owner set, or its workers if it is not made up of whole columns."""
    members = set(owners)
    inside = [number for number, workers in enumerate(columns.workers) if members.issuperset(workers)]
    if sum(len(columns.workers[number]) for number in inside) < len(owners):
        return f"workers {ranges(owners)}"
    return " ".join(columns.names[number] for number in inside)
