"""The command ``checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import FAILED, clean_errors


def checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a folder of checkpoints: its newest.")],
    json: Annotated[str | None, typer.Option(metavar="PATH|-", help="Also write it as JSON.")] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="First rewrite damaged and missing files from intact copies of other owners."),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Show what is in a checkpoint: step, plan, workers, sizes, and whether it is whole.

    [bold]Examples[/bold]
      sdp-compile checkpoint runs/one
      sdp-compile checkpoint runs/one/step-00000100 --json -
      sdp-compile checkpoint runs/one --repair

    Exit codes: 0 every part of the model is there; 1 parts are lost or
    cannot be repaired, or an unexpected failure; 2 wrong arguments, or no checkpoint; 130 stopped by
    Ctrl-C.
    """
    from sdp_compile.cli.checkpoint import run_repair, show

    with clean_errors(debug):
        is_intact = run_repair(checkpoint) if repair else True
        show(checkpoint, json)
        if not is_intact:
            raise typer.Exit(FAILED)
