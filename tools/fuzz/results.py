"""The file of results, one JSON object per line, and its summary."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.fuzz.comparison import FAILURES

Row = dict[str, Any]
"""``seed``, ``outcome``, ``detail``, ``kinds``, ``step``, ``calls``, ``notes``, ``fragments`` and ``seconds``."""


class Results:
    """Rows in memory, and in a file if there is one.

    A process that dies while it tries a module leaves the seed in a file beside it, and the next run counts a crash.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._running = None if file is None else file.with_suffix(".running")
        self.rows: list[Row] = []
        if file is not None and file.exists():
            self.rows = [json.loads(line) for line in file.read_text().splitlines() if line]
        if self._running is not None and self._running.exists():
            seed = int(self._running.read_text())
            if seed not in self.done:
                self.add({"seed": seed, "outcome": "crash", "detail": "the process ended", "fragments": []})
            self._running.unlink(missing_ok=True)

    @property
    def done(self) -> set[int]:
        """The seeds that have a row."""
        return {row["seed"] for row in self.rows}

    def start(self, seed: int) -> None:
        """Notes the module that is tried next."""
        if self._running is not None:
            self._running.write_text(str(seed))

    def add(self, row: Row) -> None:
        """Adds a row."""
        self.rows.append(row)
        if self._file is not None:
            with self._file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        if self._running is not None:
            self._running.unlink(missing_ok=True)


def failures(rows: Iterable[Row]) -> list[Row]:
    """Returns the rows of modules with which the package fails."""
    return [row for row in rows if row["outcome"] in FAILURES]


def summary(rows: Sequence[Row]) -> str:
    """Returns a table of the outcomes, in all and by fragment, those that fail most first."""
    counts = Counter(row["outcome"] for row in rows)
    fragments: dict[str, Counter[str]] = {}
    for row in rows:
        for name in set(row["fragments"]):
            fragments.setdefault(name, Counter())[row["outcome"]] += 1
    outcomes = [name for name in ("exact", "refused", *FAILURES, "invalid") if counts[name]]
    table = Table("fragment", *outcomes, title=f"{len(rows)} modules")
    table.add_row("all", *(str(counts[name]) for name in outcomes), style="bold")

    def failed(counter: Counter[str]) -> float:
        return sum(counter[name] for name in FAILURES) / counter.total()

    for name, counter in sorted(fragments.items(), key=lambda item: (-failed(item[1]), item[0])):
        table.add_row(name, *(str(counter[one] or "") for one in outcomes))
    console = Console(width=120)
    with console.capture() as captured:
        console.print(table)
    return captured.get()
