"""The paper's memory figure, measured: peak memory against coverage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def write_memory_plot(result: Mapping[str, Any], path: str) -> None:
    """Writes a line per SDP variant over its coverages, and a level line per other variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    good = [row for row in result["variants"] if row["status"] == "ok" and row["memory"] is not None]
    figure, axes = pyplot.subplots(figsize=(8, 5), constrained_layout=True)
    for number, name in enumerate(dict.fromkeys(row["name"] for row in good)):
        rows = sorted((row for row in good if row["name"] == name), key=lambda row: row["coverage"] or 0)
        label = rows[0]["label"] + (", compiled" if rows[0]["compiled"] else "")
        peaks = [row["memory"]["peak"] / 2**20 for row in rows]
        style: dict[str, Any] = {"color": f"C{number % 10}", "label": label}
        style["linestyle"] = "--" if rows[0]["compiled"] else "-"
        if rows[0]["coverage"] is None:
            axes.axhline(peaks[0], **{**style, "linestyle": ":"})
        else:
            axes.plot([row["coverage"] for row in rows], peaks, marker="o", **style)
    axes.set_xlabel("coverage")
    axes.set_ylabel("peak MiB of a step")
    axes.set_xlim(0, 1.05)
    axes.set_ylim(bottom=0)
    axes.set_title(f"{result['model']}, one worker of {result['one_of']}, {result.get('device')}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
