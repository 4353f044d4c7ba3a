"""Results of studies: rows of a JSON lines file, and what they say about contestants."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from sdp_compile.errors import SDPError

Row = Mapping[str, Any]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a file; none if it does not exist.

    Raises:
        SDPError: If a line is no row. A last line that was cut off is left out.
    """
    if not path.exists():
        return []
    rows, lines = [], path.read_text().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            assert isinstance(row, dict) and isinstance(row["key"], str)
            rows.append(row)
        except (ValueError, KeyError, AssertionError):
            if number == len(lines):
                break
            raise SDPError(f"{path}, line {number} is no result of a study. Name another file.") from None
    return rows


def append_row(path: Path, row: Row) -> None:
    """Appends a row, after removing a last line that was cut off."""
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def best_peak(rows: Iterable[Row], goal: str) -> float:
    """Returns the learning rate whose runs are best on average."""
    tried: dict[float, list[float]] = {}
    for row in rows:
        tried.setdefault(float(row["peak"]), []).append(badness(row, goal))
    return min(tried, key=lambda peak: mean(tried[peak]))


def swept(rows: Iterable[Row], goal: str) -> dict[str, dict[float, float]]:
    """Returns the figure of each learning rate that each contestant tried, the mean over seeds.

    Args:
        rows: The runs that choose learning rates.
        goal: The figure.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        found.setdefault(row["contestant"], {}).setdefault(row["peak"], []).append(float(row["result"][goal]))
    return {name: {peak: mean(values) for peak, values in tried.items()} for name, tried in found.items()}


def badness(row: Row, goal: str) -> float:
    """Returns the figure of a run that is to be small; infinity if it is not a number."""
    value = float(row["result"][goal])
    value = value if goal == "loss" else -value
    return value if value == value else float("inf")


@dataclass(frozen=True)
class Standing:
    """How a contestant did.

    Attributes:
        contestant: Who.
        match: What it had as much of as dense data parallelism.
        peak: Its learning rate.
        steps: Its steps.
        time, flops, state: What it cost, over dense data parallelism's.
        values: The reported figure of each seed.
        difference: The mean of the differences from dense data parallelism's of the same seed; None for itself.
        error: The standard error of that mean; None of one seed.
        wins: The number of seeds for which it is better.
    """

    contestant: str
    match: str
    peak: float
    steps: int
    time: float
    flops: float
    state: float
    values: Mapping[int, float]
    difference: float | None = None
    error: float | None = None
    wins: int = 0

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return mean(self.values.values())

    @property
    def spread(self) -> float:
        """The standard deviation over seeds."""
        return stdev(self.values.values()) if len(self.values) > 1 else 0.0


def standings(rows: Sequence[Row], goal: str, baseline: str) -> list[Standing]:
    """Returns how the contestants did, best first.

    Args:
        rows: The runs that are reported.
        goal: The figure.
        baseline: The contestant that others are compared with, at the same time.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["contestant"], row["match"]), []).append(row)
    against = next((group for (name, _), group in groups.items() if name == baseline), [])
    reference = {row["seed"]: float(row["result"][goal]) for row in against if row["match"] == against[0]["match"]}
    sign = 1 if goal == "loss" else -1
    result = []
    for (name, match), group in groups.items():
        values = {row["seed"]: float(row["result"][goal]) for row in group}
        pairs = [values[seed] - reference[seed] for seed in values if seed in reference and name != baseline]
        first = group[0]
        result.append(
            Standing(
                name,
                match,
                first["peak"],
                first["steps"],
                first["time"],
                first["flops"],
                first["state"],
                values,
                mean(pairs) if pairs else None,
                stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else None,
                sum(sign * pair < 0 for pair in pairs),
            )
        )
    return sorted(result, key=lambda one: sign * one.mean)
