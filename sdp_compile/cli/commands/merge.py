"""The command ``merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors


def merge(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a folder of checkpoints: its newest.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write the full model to.")] = Path(
        "model.safetensors"
    ),
    reset_lost_optimizer_state: options.ResetLost = False,
    debug: options.Debug = False,
) -> None:
    """Write the full model of a checkpoint into one safetensors file, which the original model loads.

    Files of some workers may be missing or damaged, as long as every part of the
    model is intact in one of the others. Where parts of the optimizer's state are
    lost, --reset-lost-optimizer-state writes the model all the same.

    [bold]Examples[/bold]
      sdp-compile merge runs/one -o model.safetensors
      sdp-compile merge runs/one/step-00000100

    Exit codes: 0 written; 1 unexpected failure; 2 wrong arguments, or parts of
    the model are lost; 130 stopped by Ctrl-C.
    """
    from sdp_compile.cli.checkpoint import run_merge

    with clean_errors(debug):
        run_merge(checkpoint, output, reset_lost_optimizer_state)
