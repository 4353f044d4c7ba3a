"""Plots a study: the figure of each contestant's full model against time and against memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from sdp_compile.study.results import Standing


def write_plot(rows: Sequence[Mapping[str, Any]], results: Sequence[Standing], goal: str, path: str) -> None:
    """Writes curves, means over seeds, over time; and one point per contestant, with the spread, over memory.

    Args:
        rows: The runs that are reported.
        results: How the contestants did.
        goal: The figure.
        path: A .png or .svg file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (curves, points) = pyplot.subplots(1, 2, figsize=(12, 5), constrained_layout=True)
    for number, one in enumerate(results):
        label = one.contestant if one.match == "time" else f"{one.contestant}, equal {one.match}"
        own = [row["curve"] for row in rows if (row["contestant"], row["match"]) == (one.contestant, one.match)]
        scale = one.time / max(own[0][-1]["time"], 1e-12)
        times = [point["time"] * scale for point in own[0]]
        curves.plot(
            times, [mean(values) for values in zip(*([p[goal] for p in c] for c in own), strict=True)], label=label
        )
        points.errorbar(one.state, one.mean, yerr=one.spread, fmt="o", capsize=3, color=f"C{number}")
    curves.set_xlabel("time over dense data parallelism's")
    points.set_xlabel("largest state over dense data parallelism's")
    for axes in (curves, points):
        axes.set_ylabel(goal)
        axes.grid(alpha=0.3)
    figure.legend(*curves.get_legend_handles_labels(), loc="outside right center", fontsize="small", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
