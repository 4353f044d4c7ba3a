"""``sdp-compile check --zoo``: every model of a library, one row each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from sdp_compile.checking.sweep import Row, sweep
from sdp_compile.checking.verdict import CheckResult
from sdp_compile.models.zoo import models_of

if TYPE_CHECKING:
    from sdp_compile.cli.check_settings import CheckSettings
    from sdp_compile.policies import Policy


def sweep_zoo(settings: CheckSettings, policy: Policy, console: Console) -> tuple[list[dict[str, Any]], int]:
    """Checks all models of ``settings.zoo`` in their small configurations.

    Returns the rows as plain data, and the exit code: 0 where every model is exact or has nothing to partition.
    """
    assert settings.zoo is not None
    names = models_of(settings.zoo)[: settings.limit]
    rows: list[Row] = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"checking {settings.zoo}", total=len(names))
        for row in sweep(names, policy, settings.workers, settings.ranks or None, settings.seed):
            rows.append(row)
            progress.update(task, advance=1, description=row.name)
            if not console.is_terminal:
                console.print(_line(row), markup=False, highlight=False, soft_wrap=True)
    console.print(table(f"{settings.zoo}, small configurations", rows))
    for row in rows:
        if not row.result.is_exact:
            console.print(f"{row.name}: {row.result.verdict}: {row.result.reason}", markup=False, soft_wrap=True)
    console.print(summary(rows))
    return [row.to_dict() for row in rows], int(any(row.is_failure for row in rows))


def table(title: str, rows: Iterable[Row]) -> Table:
    """Returns a table with one row per model."""
    result = Table(
        "model",
        "M parameters",
        "captured",
        "axes",
        "blocks",
        "cut",
        "kept",
        "exact",
        "seconds",
        title=title,
        title_justify="left",
        title_style="italic",
        box=box.SIMPLE_HEAD,
    )
    for row in rows:
        result.add_row(*_cells(row.result, row.name, row.seconds))
    return result


def summary(rows: list[Row]) -> str:
    """Returns one line that counts the verdicts."""
    counts: dict[str, int] = {}
    for row in rows:
        verdict = "nothing to partition" if row.has_nothing_to_cut else row.result.verdict
        counts[verdict] = counts.get(verdict, 0) + 1
    kept = sorted(max(row.result.kept) for row in rows if row.result.kept and row.result.axes_cut)
    median = f"; a worker keeps {kept[len(kept) // 2]:.2f} of the parameters (median)" if kept else ""
    return f"{len(rows)} models: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items())) + median


def _line(row: Row) -> str:
    return f"{row.name}: {row.result.verdict}, {row.seconds:.1f} s"


def _cells(result: CheckResult, name: str, seconds: float) -> tuple[str, ...]:
    if not result.captured:
        return name, "", "no", "", "", "", "", result.verdict, f"{seconds:.1f}"
    kept = f"{max(result.kept):.1%}" if result.kept else "-"
    return (
        name,
        f"{result.parameters / 1e6:.1f}",
        "yes",
        f"{result.axes_cut}/{result.axes}",
        str(result.blocks),
        f"{result.share_cut:.1%}",
        kept,
        "yes" if result.is_exact else result.verdict,
        f"{seconds:.1f}",
    )
