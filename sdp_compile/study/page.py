"""A study as one HTML page that loads nothing: curves, results, costs, phases, and how learning rates were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sdp_compile.study.plot import svg
from sdp_compile.study.results import Standing, swept
from sdp_compile.study.spec import Study

Row = Mapping[str, Any]


def study_html(
    study: Study, rows: Sequence[Row], tuning: Sequence[Row], results: Sequence[Standing], goal: str, baseline: str
) -> str:
    """Returns the page.

    Args:
        study: The study.
        rows: The runs that are reported.
        tuning: The runs that chose learning rates.
        results: How the contestants did, best first.
        goal: The figure.
        baseline: The contestant that others are compared with.
    """
    environment = Environment(
        loader=PackageLoader("sdp_compile.study"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    phases = {row["contestant"]: row["phases"] for row in rows}
    page: str = environment.get_template("study.html.j2").render(
        study=study,
        results=results,
        goal=goal,
        baseline=baseline,
        phases=phases,
        swept=swept(tuning, goal),
        noise=noise_words(study, rows),
        versions=sorted({row["versions"] for row in rows}),
        picture=svg(rows, results, goal),
    )
    return page


def noise_words(study: Study, rows: Sequence[Row]) -> str | None:
    """Returns a sentence with the median noise scale at the end of dense training; None if none was measured."""
    values = [row["curve"][-1]["noise_scale"] for row in rows if "noise_scale" in row["curve"][-1]]
    found = sorted(float("inf") if value is None else value for value in values)
    if not found:
        return None
    median = found[len(found) // 2]
    scale = "too large to be measured" if median == float("inf") else f"{median:.0f} samples"
    return f"Noise scale at the end of dense training: {scale}; a step has {study.batch * study.workers}."
