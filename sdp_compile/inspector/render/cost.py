"""The view ``cost`` on a terminal: bars of dense against each worker, and the traffic of each group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from sdp_compile.formatting import size
from sdp_compile.inspector.cost import ClassCost, Cost, CostView
from sdp_compile.inspector.render.lines import Line, Lines
from sdp_compile.inspector.render.style import DIM, counted, heading, workers_text

MOST_BARS = 16
"""Kinds of workers with a bar of their own."""

MOST_GROUPS = 16

_FILLS = {
    "parameters": ("█", "blue"),
    "gradients": ("▓", "magenta"),
    "AdamW state": ("░", "yellow"),
    "forward FLOPs": ("█", "green"),
    "of cut parameters": ("█", "cyan"),
    "of shared parameters": ("▓", "red"),
    "refreshed values": ("░", "magenta"),
}
"""How each part of a bar is drawn, with and without colour."""


@dataclass(frozen=True)
class Bar:
    """A label, the parts of a bar and what they sum up to in words."""

    label: str
    parts: tuple[tuple[str, float], ...]
    words: str

    @property
    def total(self) -> float:
        return sum(amount for _, amount in self.parts)


class Bars:
    """Bars under one another, on one scale, as wide as there is room."""

    def __init__(self, title: str, bars: Sequence[Bar]) -> None:
        self.title, self.bars = title, bars

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        title = Text(self.title, style="italic")
        names = list(dict.fromkeys(name for bar in self.bars for name, _ in bar.parts))
        for name in names if len(names) > 1 else ():
            fill, style = _FILLS[name]
            title.append("   ").append(f"{fill}{fill} {name}", style=f"{style} not italic")
        yield title
        widest = min(max(cell_len(bar.label) for bar in self.bars), options.max_width // 3)
        words = max(cell_len(bar.words) for bar in self.bars)
        room = max(options.max_width - widest - words - 2, 8)
        scale = room / max(max(bar.total for bar in self.bars), 1e-9)
        for bar in self.bars:
            label = Text(bar.label)
            label.truncate(widest, overflow="ellipsis", pad=True)
            yield label.append(" ").append_text(_bar(bar, scale, room)).append(f" {bar.words:>{words}}")


def _bar(bar: Bar, scale: float, room: int) -> Text:
    text, drawn, amount = Text(), 0, 0.0
    for name, part in bar.parts:
        amount += part
        cells = round(amount * scale) - drawn
        fill, style = _FILLS[name]
        text.append(fill * cells, style=style)
        drawn += cells
    return text.append(" " * (room - drawn))


def render_cost(view: CostView) -> RenderableType:
    """Memory, FLOPs and traffic of the dense model and of each class of workers."""
    title = heading(view.model, counted(view.workers, "worker"), f"memory with {view.optimizer}")
    shown = [(_label(view, one), one.cost) for one in _shown(view.classes)]
    costs = [("dense", view.dense), *shown]
    parts: list[RenderableType] = [
        title,
        Text(),
        Bars("Memory of a worker", [_memory(label, cost, view.dense) for label, cost in costs]),
    ]
    if view.dense.flops:
        bars = [_flops(label, cost, view.dense) for label, cost in costs]
        parts += [Text(), Bars("Forward FLOPs at the example's size", bars)]
    if view.dense.sent:
        bars = [_sent(label, cost, view.dense) for label, cost in [("data parallel", view.dense), *shown]]
        parts += [Text(), Bars("Sent per step by a worker", bars)]
    if sum(len(one.workers) for one in _shown(view.classes)) < view.workers:
        parts.append(Text("Of many kinds of worker the most and the least loaded are shown; all: --json", style=DIM))
    if view.groups:
        parts += [Text(), Lines(list(_groups(view)))]
    return Group(*parts)


def _shown(classes: Sequence[ClassCost]) -> list[ClassCost]:
    """Classes of equal cost together; of many kinds the most and the least loaded."""
    by_cost: dict[Cost, list[int]] = {}
    for one in classes:
        by_cost.setdefault(one.cost, []).extend(one.workers)
    kinds = [ClassCost(tuple(sorted(workers)), cost) for cost, workers in by_cost.items()]
    if len(kinds) <= MOST_BARS:
        return kinds
    by_load = sorted(kinds, key=lambda one: -one.cost.total)
    return [*by_load[: MOST_BARS // 2], *by_load[-MOST_BARS // 2 :]]


def _label(view: CostView, one: ClassCost) -> str:
    if len(one.workers) == view.workers > 1:
        return f"each of {view.workers:,}"
    return workers_text(one.workers).removeprefix("workers ")


def _memory(label: str, cost: Cost, dense: Cost) -> Bar:
    parts = (("parameters", cost.parameters), ("gradients", cost.gradients), ("AdamW state", cost.optimizer_state))
    return Bar(label, parts, f"{size(cost.total)} {_share(cost.total, dense.total)}")


def _flops(label: str, cost: Cost, dense: Cost) -> Bar:
    return Bar(label, (("forward FLOPs", cost.flops),), f"{_si(cost.flops)} {_share(cost.flops, dense.flops)}")


def _sent(label: str, cost: Cost, dense: Cost) -> Bar:
    parts = [("of cut parameters", cost.sent_partitioned), ("of shared parameters", cost.sent_shared)]
    parts += [("refreshed values", cost.sent_refresh)] if cost.sent_refresh else []
    return Bar(label, tuple(parts), f"{size(cost.sent)} {_share(cost.sent, dense.sent)}")


def _share(part: float, whole: float) -> str:
    return f"{part / whole:>6.1%}" if whole else f"{'-':>6}"


def _si(amount: float) -> str:
    for unit in ("", " k", " M", " G", " T"):
        if amount < 1000:
            return f"{amount:.0f}{unit}" if not unit else f"{amount:.1f}{unit}"
        amount /= 1000
    return f"{amount:.1f} P"


def _groups(view: CostView) -> Iterator[Line]:
    yield Line(
        Text("Owner groups: who reduces what, once per step", style="italic"),
        Text("payload  each sends  buckets", style="italic"),
    )
    for group in view.groups[:MOST_GROUPS]:
        right = Text(f"{size(group.payload):>10} {size(group.sent):>11} {group.buckets:>8}")
        left = "all workers" if len(group.owners) == view.workers else workers_text(group.owners)
        yield Line(Text(left), right)
    rest = view.groups[MOST_GROUPS:]
    if rest:
        payload, buckets = sum(group.payload for group in rest), sum(group.buckets for group in rest)
        yield Line(
            Text(f"{len(rest)} more groups", style=DIM), Text(f"{size(payload):>10} {'':>11} {buckets:>8}", style=DIM)
        )
