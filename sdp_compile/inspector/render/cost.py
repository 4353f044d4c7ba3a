"""The view ``cost`` on a terminal: bars for the dense model and each worker, and the traffic of each owner group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from sdp_compile.formatting import metric, size
from sdp_compile.inspector.cost import Cost, CostView, merged
from sdp_compile.inspector.render.lines import Line, Lines
from sdp_compile.inspector.render.style import DIM, counted, heading, workers_text

MOST_BARS = 16
"""Kinds of workers with a bar of their own."""

MOST_GROUP_ROWS = 16
"""Owner groups with a row of their own."""

_FILLS = {
    "parameters": ("█", "blue"),
    "gradients": ("▓", "magenta"),
    "AdamW state": ("░", "yellow"),
    "forward FLOPs": ("█", "green"),
    "cut parameters": ("█", "cyan"),
    "shared parameters": ("▓", "red"),
    "refreshed values": ("░", "magenta"),
}
"""The character and colour of each part of a bar."""


@dataclass(frozen=True)
class Bar:
    """A labelled bar: its parts by name, and their sum as text."""

    label: str
    parts: tuple[tuple[str, float], ...]
    words: str

    @property
    def total(self) -> float:
        return sum(amount for _, amount in self.parts)


class Bars:
    """Bars below each other on one scale, as wide as the terminal allows."""

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
    """Renders memory, FLOPs and traffic of the dense model and of each kind of worker."""
    title = heading(view.model, counted(view.workers, "worker"), f"memory with {view.optimizer}")
    kinds = _shown_kinds(view)
    shown = [(_label(view, workers), cost) for workers, cost in kinds]
    costs = [("dense", view.dense), *shown]
    parts: list[RenderableType] = [
        title,
        Text(),
        Bars("Memory per worker", [_memory(label, cost, view.dense) for label, cost in costs]),
    ]
    if view.dense.flops:
        bars = [_flops(label, cost, view.dense) for label, cost in costs]
        parts += [Text(), Bars("Forward FLOPs at the example's size", bars)]
    if view.dense.sent:
        bars = [_sent(label, cost, view.dense) for label, cost in [("data parallel", view.dense), *shown]]
        parts += [Text(), Bars("Sent per worker and step", bars)]
    if sum(len(workers) for workers, _ in kinds) < view.workers:
        parts.append(Text("Only the most and the least loaded workers are shown; --json lists all.", style=DIM))
    if view.groups:
        parts += [Text(), Lines(list(_groups(view)))]
    return Group(*parts)


def _shown_kinds(view: CostView) -> list[tuple[tuple[int, ...], Cost]]:
    """Workers of equal cost together; only the most and the least loaded if there are many kinds."""
    kinds = merged(view.classes, lambda cost: cost)
    if len(kinds) <= MOST_BARS:
        return kinds
    by_load = sorted(kinds, key=lambda kind: -kind[1].total)
    return [*by_load[: MOST_BARS // 2], *by_load[-MOST_BARS // 2 :]]


def _label(view: CostView, workers: Sequence[int]) -> str:
    if len(workers) == view.workers > 1:
        return f"each of {view.workers:,}"
    return workers_text(workers).removeprefix("workers ")


def _memory(label: str, cost: Cost, dense: Cost) -> Bar:
    parts = (("parameters", cost.parameters), ("gradients", cost.gradients), ("AdamW state", cost.optimizer_state))
    return Bar(label, parts, f"{size(cost.total)} {_share(cost.total, dense.total)}")


def _flops(label: str, cost: Cost, dense: Cost) -> Bar:
    return Bar(label, (("forward FLOPs", cost.flops),), f"{metric(cost.flops)} {_share(cost.flops, dense.flops)}")


def _sent(label: str, cost: Cost, dense: Cost) -> Bar:
    parts = [("cut parameters", cost.sent_partitioned), ("shared parameters", cost.sent_shared)]
    parts += [("refreshed values", cost.sent_refresh)] if cost.sent_refresh else []
    return Bar(label, tuple(parts), f"{size(cost.sent)} {_share(cost.sent, dense.sent)}")


def _share(part: float, whole: float) -> str:
    return f"{part / whole:>6.1%}" if whole else f"{'-':>6}"


def _groups(view: CostView) -> Iterator[Line]:
    yield Line(
        Text("Owner groups: gradients averaged once per step", style="italic"),
        Text("payload  each sends  buckets", style="italic"),
    )
    for group in view.groups[:MOST_GROUP_ROWS]:
        right = Text(f"{size(group.payload):>10} {size(group.sent):>11} {group.buckets:>8}")
        left = "all workers" if len(group.owners) == view.workers else workers_text(group.owners)
        yield Line(Text(left), right)
    rest = view.groups[MOST_GROUP_ROWS:]
    if rest:
        payload, buckets = sum(group.payload for group in rest), sum(group.buckets for group in rest)
        yield Line(
            Text(f"{len(rest)} more groups", style=DIM), Text(f"{size(payload):>10} {'':>11} {buckets:>8}", style=DIM)
        )
