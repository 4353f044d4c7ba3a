"""The command ``study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.command_words import check_file
from sdp_compile.errors import SDPError


def study(
    file: Annotated[Path, typer.Argument(help="The study, a TOML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Results, JSON lines; a second run continues them. Default: beside FILE.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs at a time, each on one thread.")] = 1,
    plot: Annotated[str | None, typer.Option(metavar="FILE.png|FILE.svg", help="Picture to write.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Page to write, with plots.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Whom to compare with. Default: the first contestant.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Run nothing; show the results that are there.")] = False,
    debug: options.Debug = False,
) -> None:
    """Compare schedules with dense training, by emulating all workers in one process.

    [bold]Examples[/bold]
      sdp-compile study docs/studies/text.toml --jobs 2
      sdp-compile study docs/studies/text.toml --show --plot text.svg
      sdp-compile study docs/studies/text.toml --show --report text.html

    Every contestant tries the same learning rates, on held-out data that the
    reported figures do not use, and has as much time, as many steps or FLOPs
    as the first contestant. Runs that the results hold are not run again.

    Exit codes: 0 all runs are there; 1 unexpected failure; 2 wrong
    arguments, or a study or policy that cannot be; 130 stopped by Ctrl-C.
    """
    with clean_errors(debug):
        if not file.is_file():
            raise SDPError(f"{file}: no such file. Pass the TOML file of a study.")
        results = out or file.with_suffix(".jsonl")
        check_file("--out", str(results))
        if plot is not None:
            from sdp_compile.bench.plot import check_plot

            check_plot(plot)
            check_file("--plot", plot)
        if report is not None:
            check_file("--report", str(report))
        from sdp_compile.cli.study import study as run

        run(file, results, jobs, plot, report, baseline, show)
