"""The file of results, one JSON object per line, and its summary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.packages.trial import FAILURES, Row

_ORDER = ("exact", "refused", "unverified", "wrong", "crash", "cannot build")


def read(file: Path) -> list[Row]:
    """Returns the rows of a file, of each model the last; none if it does not exist."""
    lines = file.read_text().splitlines() if file.exists() else []
    return list({row["name"]: row for row in map(json.loads, filter(None, lines))}.values())


def append(file: Path, row: Row) -> None:
    """Adds a row to a file."""
    with file.open("a") as stream:
        stream.write(json.dumps(row) + "\n")


def summary(rows: Sequence[Row]) -> str:
    """Returns a table of the outcomes by package, and a line for each model that is not exact."""
    table = Table("package", *_ORDER, "models", "kept", "seconds")
    packages = list(dict.fromkeys(row["name"].partition(":")[0] for row in rows))
    for package in [*packages, "all"]:
        mine = [row for row in rows if package in ("all", row["name"].partition(":")[0])]
        counts = Counter(row["outcome"] for row in mine)
        kept = [row["kept"] for row in mine if row["outcome"] == "exact" and row["kept"] is not None]
        mean = f"{sum(kept) / len(kept):.0%}" if kept else ""
        seconds = f"{sum(row['seconds'] for row in mine):,.0f}"
        table.add_row(package, *(str(counts[one] or "") for one in _ORDER), str(len(mine)), mean, seconds)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    order = {name: number for number, name in enumerate((*FAILURES, "refused", "unverified", "cannot build"))}
    others = sorted((row for row in rows if row["outcome"] != "exact"), key=lambda row: order[row["outcome"]])
    lines = [f"{row['outcome']}: {row['name']}: {' '.join(row['detail'].split())[:300]}" for row in others]
    return captured.get() + "\n".join(lines)
