"""``sdp-compile study``: runs a study, shows how contestants did, and plots it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from sdp_compile.study.page import noise_words, study_html
from sdp_compile.study.plot import write_plot
from sdp_compile.study.results import Standing, standings, swept
from sdp_compile.study.run import check
from sdp_compile.study.runner import Runner
from sdp_compile.study.spec import Study
from sdp_compile.study.tasks import TASKS, make_task


def study(
    path: Path, out: Path, jobs: int, plot: str | None, page: Path | None, baseline: str | None, show_only: bool
) -> None:
    """Runs what is missing of the study in a file, and prints its table.

    Args:
        path: The study.
        out: The file of its results.
        jobs: How many runs are under way at a time.
        plot: A picture to write; None for none.
        page: An HTML page to write; None for none.
        baseline: The contestant that others are compared with; by default the first.
        show_only: Whether to run nothing.
    """
    found = Study.load(path)
    make_task(found.task, found.options)

    def tell(row: dict[str, Any], left: int) -> None:
        figures = ", ".join(f"{key} {value:.4f}" for key, value in row["result"].items() if value is not None)
        stage = "tunes" if row["tunes"] else f"equal {row['match']}"
        print(
            f"{row['contestant']} ({stage}, seed {row['seed']}, {row['peak']:g}, {row['steps']} steps): {figures} "
            f"({row['seconds']:.0f} s, {left} left)",
            file=sys.stderr,
            flush=True,
        )

    runner = Runner(found, out, tell)
    if not show_only and runner.missing():
        check(found)
        runner.all(jobs)
    goal, rows = TASKS[found.task].goal, runner.rows()
    against = baseline or found.contestants[0].name
    results = standings(rows, goal, against)
    console = Console()
    tried = swept(runner.tuning_rows(), goal)
    sweep = [rates(tried, goal)] if tried else []
    console.print(Group(Text(), outcome(results, goal, against), cost(results), *sweep))
    noise = noise_words(found, rows)
    if noise is not None:
        console.print(noise)
    missing = runner.missing()
    if missing:
        console.print(f"{missing} runs are missing.")
    if plot is not None and rows:
        write_plot(rows, results, goal, plot)
        console.print(f"Wrote {plot}.", soft_wrap=True, markup=False)
    if page is not None and rows:
        page.write_text(study_html(found, rows, runner.tuning_rows(), results, goal, against), encoding="utf-8")
        console.print(f"Wrote {page}.", soft_wrap=True, markup=False)


def outcome(results: Sequence[Standing], goal: str, baseline: str) -> Table:
    """Returns what came of each contestant, best first, and its paired difference from the baseline."""
    shown = _table("The full model on held-out data", f"{goal} ± spread", f"less {baseline}", "seeds better")
    for one in results:
        against = ("", "")
        if one.difference is not None:
            error = "" if one.error is None else f" ± {one.error:.4f}"
            against = (f"{one.difference:+.4f}{error}", f"{one.wins} of {len(one.values)}")
        shown.add_row(_name(one), f"{one.mean:.4f} ± {one.spread:.4f}", *against)
    return shown


def cost(results: Sequence[Standing]) -> Table:
    """Returns what each contestant cost over dense data parallelism, and the learning rate that it chose."""
    shown = _table("What it cost, over dense data parallelism", "peak rate", "steps", "time", "FLOPs", "largest state")
    for one in results:
        figures = (f"{one.time:.2f}", f"{one.flops:.2f}", f"{one.state:.2f}")
        shown.add_row(_name(one), f"{one.peak:g}", str(one.steps), *figures)
    return shown


def rates(tried: Mapping[str, Mapping[float, float]], goal: str) -> Table:
    """Returns what each contestant reached with each learning rate, on the data that chooses one."""
    every = sorted({rate for one in tried.values() for rate in one})
    shown = _table(f"Learning rates tried: {goal} on other data", *(f"{rate:g}" for rate in every))
    for name, one in tried.items():
        shown.add_row(name, *(f"{one[rate]:.4f}" if rate in one else "" for rate in every))
    return shown


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="italic", box=box.SIMPLE_HEAD)
    table.add_column("contestant", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _name(one: Standing) -> str:
    return one.contestant if one.match == "time" else f"{one.contestant}, equal {one.match}"
