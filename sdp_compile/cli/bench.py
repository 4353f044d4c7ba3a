"""``sdp-compile bench``: from the options to the race, its table, its JSON and its picture."""

from __future__ import annotations

import sys

from rich.console import Console

from sdp_compile.bench.plot import check_plot
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.cli.clean_errors import FAILED
from sdp_compile.cli.json_file import write_json
from sdp_compile.processes import interruptible
from sdp_compile.progress import stages


def run(settings: BenchSettings, debug: bool = False) -> int:
    """Race, print, write; the exit code: 1 where a variant has no figures, or traffic is not what the formula says."""
    if settings.plot_path is not None:
        check_plot(settings.plot_path)
    from sdp_compile.bench import race
    from sdp_compile.bench.plot import write_plot
    from sdp_compile.bench.result import mistakes, summarise
    from sdp_compile.cli.bench_report import render

    # With --json - the report goes to standard output, alone.
    console = Console(stderr=settings.json_path == "-")
    variants = settings.chosen
    with interruptible(), stages(race.stages(settings, variants)) as begin:
        entries = race.race(settings, variants, begin)
    result = summarise(settings, entries)
    if debug:
        sys.stderr.writelines(f"{entry.variant.name}:\n{entry.details}" for entry in entries if entry.details)
    console.print(render(result))
    write_json(settings.json_path, result)
    if settings.plot_path is not None and any(not entry.reason for entry in entries):
        write_plot(result, settings.plot_path)
    wrong = mistakes(result)
    for line in wrong:
        Console(stderr=True).print(f"[bold red]Traffic:[/] {line}", soft_wrap=True, highlight=False)
    return FAILED if wrong or any(entry.reason for entry in entries) else 0
