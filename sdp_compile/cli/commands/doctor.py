"""The command ``doctor``."""

from __future__ import annotations

from typing import Annotated

import typer

from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    debug: options.Debug = False,
) -> None:
    """Report what this machine has, what training would use, and what is missing.

    [bold]Examples[/bold]
      sdp-compile doctor
      sdp-compile doctor --json

    Exit codes: 0 this machine can train; 1 something that training needs
    is missing or broken. Warnings and notes do not change the code.
    """
    from sdp_compile.cli.doctor import run

    with clean_errors(debug):
        code = run(json)
    raise typer.Exit(code)
