"""Plots a study: the figure of each contestant's full model against steps, FLOPs, time and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from statistics import mean
from typing import Any, TextIO

from sdp_compile.study.results import Standing

_AXES = {
    "step": "steps",
    "flops": "FLOPs over dense data parallelism's",
    "time": "time over dense data parallelism's",
}


def write_plot(rows: Sequence[Mapping[str, Any]], results: Sequence[Standing], goal: str, path: str | TextIO) -> None:
    """Writes curves, means over seeds; and one point per contestant, with the spread, over memory.

    Args:
        rows: The runs that are reported.
        results: How the contestants did.
        goal: The figure.
        path: A .png or .svg file, or an open file for SVG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(13, 9), constrained_layout=True)
    *curves, points = axes.flat
    for number, one in enumerate(results):
        label = one.contestant if one.match == "time" else f"{one.contestant}, equal {one.match}"
        own = [row["curve"] for row in rows if (row["contestant"], row["match"]) == (one.contestant, one.match)]
        values = [mean(several) for several in zip(*([point[goal] for point in curve] for curve in own), strict=True)]
        ends = {"step": own[0][-1]["step"], "flops": one.flops, "time": one.time}
        for panel, (key, words) in zip(curves, _AXES.items(), strict=True):
            scale = ends[key] / max(own[0][-1][key], 1e-12)
            panel.plot([point[key] * scale for point in own[0]], values, label=label)
            panel.set_xlabel(words)
        points.errorbar(one.state, one.mean, yerr=one.spread, fmt="o", capsize=3, color=f"C{number}")
    points.set_xlabel("largest state over dense data parallelism's")
    for panel in axes.flat:
        panel.set_ylabel(goal)
        panel.grid(alpha=0.3)
    _look_at_the_end(curves, results)
    figure.legend(*curves[0].get_legend_handles_labels(), loc="outside right center", fontsize="small", frameon=False)
    figure.savefig(path, dpi=150, format="svg" if not isinstance(path, str) else None)
    pyplot.close(figure)


def svg(rows: Sequence[Mapping[str, Any]], results: Sequence[Standing], goal: str) -> str:
    """Returns what `write_plot` draws as the text of an SVG element, for a page.

    Args:
        rows: The runs that are reported.
        results: How the contestants did.
        goal: The figure.
    """
    text = StringIO()
    write_plot(rows, results, goal, text)
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def _look_at_the_end(panels: Sequence[Any], results: Sequence[Standing]) -> None:
    """Leaves out the beginning of the curves, beside which the differences at the end could not be seen."""
    ends = [one.mean for one in results]
    margin = 3 * max(max(ends) - min(ends), 1e-3)
    for panel in panels:
        low, high = panel.get_ylim()
        panel.set_ylim(max(low, min(ends) - margin), min(high, max(ends) + margin))
