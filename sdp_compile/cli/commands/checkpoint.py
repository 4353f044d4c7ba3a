"""The command ``checkpoint``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors


def checkpoint(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a folder of checkpoints: its newest.")],
    json: Annotated[str | None, typer.Option(metavar="PATH|-", help="Also write it as JSON.")] = None,
    debug: options.Debug = False,
) -> None:
    """Show what is in a checkpoint: step, plan, workers, sizes, and whether it is whole.

    [bold]Examples[/bold]
      sdp-compile checkpoint runs/one
      sdp-compile checkpoint runs/one/step-00000100 --json -

    Exit codes: 0 every part of the model is there; 1 parts are lost, or an
    unexpected failure; 2 wrong arguments, or no checkpoint; 130 stopped by
    Ctrl-C.
    """
    from sdp_compile.cli.checkpoint import show

    with clean_errors(debug):
        show(checkpoint, json)
