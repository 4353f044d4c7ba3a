"""The command ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.command_words import DEFAULT_WORKERS


def report(
    model: options.Model,
    policy: options.Policy = "auto",
    coverage: options.Coverage = None,
    masking: options.Masking = None,
    passes: options.Passes = None,
    workers: options.Workers = DEFAULT_WORKERS,
    node_size: options.NodeSize = None,
    schedule: Annotated[
        str | None, options.schedule("Show the phases of this schedule, and the graph of its first one.")
    ] = None,
    rank: Annotated[int, typer.Option(min=0, help="Show this worker's rewritten graph.")] = 0,
    small: options.FullOrSmall = None,
    inputs: options.Inputs = None,
    overrides: options.Overrides = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write the page to.")] = Path("report.html"),
    debug: options.Debug = False,
) -> None:
    """Write one HTML page, without outside resources, that shows what is captured, cut and rewritten.

    [bold]Examples[/bold]
      sdp-compile report transformers:gpt2 --workers 8 -o gpt2.html
      sdp-compile report torchvision:resnet18 --input 2x3x64x64 --policy block
      sdp-compile report path/to/file.py:factory --policy my_policy.toml
      sdp-compile report transformers:gpt2 --schedule growing

    Exit codes: 0 written; 1 unexpected failure; 2 wrong arguments, or a
    model, policy or file that cannot be used; 130 stopped by Ctrl-C.
    """
    from sdp_compile.cli.report import run
    from sdp_compile.cli.subject import SubjectWords

    with clean_errors(debug):
        words = SubjectWords(
            model,
            policy,
            coverage,
            masking and masking.value,
            workers,
            tuple(inputs or ()),
            tuple(overrides or ()),
            options.size_of(small),
            passes,
            node_size,
            schedule,
        )
        run(words, output, rank)
