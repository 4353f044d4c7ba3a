"""The charts of what a worker pays: tables whose bars are stacked, dense data parallelism beside the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdp_compile.formatting import size
from sdp_compile.report_page.members import named

if TYPE_CHECKING:
    from sdp_compile.inspector.cost import Cost, CostView

MOST_ROWS = 24


@dataclass(frozen=True)
class Segment:
    """A part of a bar; ``width`` in percent of the chart."""

    series: str
    text: str
    width: float


@dataclass(frozen=True)
class Bar:
    label: str
    segments: tuple[Segment, ...]
    text: str
    share: float


@dataclass(frozen=True)
class Chart:
    """``left_out`` counts the rows that there was no room for: those that pay least."""

    title: str
    about: str
    series: tuple[str, ...]
    bars: tuple[Bar, ...]
    left_out: int


Figures = Callable[["Cost"], Sequence[float]]


def charts(view: CostView) -> tuple[Chart, ...]:
    """Memory, traffic and computation per worker."""
    return (
        _chart(
            view,
            "Memory",
            f"Bytes that one worker holds with {view.optimizer}, without activations",
            ("parameters", "gradients", "optimizer state", "buffers"),
            lambda cost: (cost.parameters, cost.gradients, cost.optimizer_state, cost.buffers),
            size,
        ),
        _chart(
            view,
            "Traffic",
            "Bytes that one worker sends per step, in rings",
            ("of cut parameters", "of shared parameters", "refreshed values"),
            lambda cost: (cost.sent_partitioned, cost.sent_shared, cost.sent_refresh),
            size,
        ),
        _chart(
            view,
            "Computation",
            "Floating-point operations of one forward pass at the example's size",
            ("FLOPs",),
            lambda cost: (cost.flops,),
            flops,
        ),
    )


def _chart(
    view: CostView, title: str, about: str, series: tuple[str, ...], figures: Figures, text: Callable[[float], str]
) -> Chart:
    dense = figures(view.dense)
    most = max(sum(dense), *(sum(figures(one.cost)) for one in view.classes)) or 1.0

    def bar(label: str, values: Sequence[float]) -> Bar:
        segments = (
            Segment(name, text(value), 100 * value / most) for name, value in zip(series, values, strict=True) if value
        )
        return Bar(label, tuple(segments), text(sum(values)), sum(values) / (sum(dense) or 1.0))

    rows = sorted(_alike(view, figures), key=lambda row: row[0])
    if len(rows) > MOST_ROWS:
        rows.sort(key=lambda row: -sum(row[1]))
    bars = [bar(named(members, view.workers), values) for members, values in rows[:MOST_ROWS]]
    return Chart(title, about, series, (bar("dense", dense), *bars), len(rows) - len(bars))


def _alike(view: CostView, figures: Figures) -> list[tuple[list[int], tuple[float, ...]]]:
    """The workers that pay the same, and what; they can own different things."""
    found: dict[tuple[float, ...], list[int]] = {}
    for one in view.classes:
        found.setdefault(tuple(figures(one.cost)), []).extend(one.workers)
    return [(sorted(members), values) for values, members in found.items()]


def flops(number: float) -> str:
    """A number of operations for people."""
    for unit in ("", " K", " M", " G", " T"):
        if number < 1000:
            return f"{number:.0f}{unit}" if unit in ("", " K") else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:,.1f} P"
