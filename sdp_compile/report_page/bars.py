"""Charts of what a worker pays: stacked bars for dense data parallelism and for each kind of worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdp_compile.formatting import metric, size
from sdp_compile.inspector.cost import Cost, CostView, merged
from sdp_compile.report_page.members import named

MOST_ROWS = 24
"""Bars per chart, apart from the dense one."""


@dataclass(frozen=True)
class Segment:
    """A part of a bar; ``width`` is in percent of the chart."""

    series: str
    text: str
    width: float


@dataclass(frozen=True)
class Bar:
    """A bar: its parts, their sum as text, and the ``share`` of the dense bar."""

    label: str
    segments: tuple[Segment, ...]
    text: str
    share: float


@dataclass(frozen=True)
class Chart:
    """Bars on one scale. ``left_out`` counts the kinds of workers without a bar: those that pay least."""

    title: str
    about: str
    series: tuple[str, ...]
    bars: tuple[Bar, ...]
    left_out: int


Figures = Callable[[Cost], Sequence[float]]


def charts(view: CostView) -> tuple[Chart, ...]:
    """Returns the charts of memory, traffic and computation per worker."""
    return (
        _chart(
            view,
            "Memory",
            f"Bytes held per worker with {view.optimizer}, without activations",
            ("parameters", "gradients", "optimizer state", "buffers"),
            lambda cost: (cost.parameters, cost.gradients, cost.optimizer_state, cost.buffers),
            size,
        ),
        _chart(
            view,
            "Traffic",
            "Bytes sent per worker and step, with ring collectives",
            ("cut parameters", "shared parameters", "refreshed values"),
            lambda cost: (cost.sent_partitioned, cost.sent_shared, cost.sent_refresh),
            size,
        ),
        _chart(
            view,
            "Computation",
            "FLOPs of one forward pass at the example's size",
            ("FLOPs",),
            lambda cost: (cost.flops,),
            metric,
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

    rows = sorted(merged(view.classes, lambda cost: tuple(figures(cost))), key=lambda row: row[0])
    if len(rows) > MOST_ROWS:
        rows.sort(key=lambda row: -sum(row[1]))
    bars = [bar(named(members, view.workers), values) for members, values in rows[:MOST_ROWS]]
    return Chart(title, about, series, (bar("dense", dense), *bars), len(rows) - len(bars))
