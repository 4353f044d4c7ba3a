"""Plots a bench run: memory against step time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdp_compile.errors import SDPError


def check_plot(path: str) -> None:
    """Checks that a plot can be written, before minutes of work.

    Raises:
        SDPError: If ``path`` is not a .png or .svg file, or matplotlib is not installed.
    """
    import importlib.util

    if Path(path).suffix not in (".png", ".svg"):
        raise SDPError(f"--plot {path}: the file must end in .png or .svg.")
    if importlib.util.find_spec("matplotlib") is None:
        raise SDPError("--plot needs matplotlib. Install it with: pip install 'sdp-compile[plot]'")


def write_plot(result: dict[str, Any], path: str) -> None:
    """Writes a point per variant (circle: eager, triangle: compiled), with the quartiles of its step time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    good = [variant for variant in result["variants"] if variant["status"] == "ok"]
    figure, axes = pyplot.subplots(figsize=(8, 5), constrained_layout=True)
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(one["label"] for one in good))}
    for variant in good:
        seconds, most = variant["step_seconds"], variant["memory"]["most"]
        memory = (most["state"] + most["activations"]) / 2**20
        axes.errorbar(
            seconds["median"],
            memory,
            xerr=[[seconds["median"] - seconds["low"]], [seconds["high"] - seconds["median"]]],
            fmt="^" if variant["compiled"] else "o",
            color=colours[variant["label"]],
            capsize=3,
            label=variant["label"] + (", compiled" if variant["compiled"] else ""),
        )
    axes.set_xlabel("step time in seconds (median and quartiles)")
    axes.set_ylabel("MiB per worker: parameters, buffers, gradients,\noptimizer state and saved activations")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_title(f"{result['model']}, {result['workers']} workers, {result['device']}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
