"""Errors as one message and an exit code, with a traceback only on ``--debug``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from sdp_compile.errors import DamagedState, SDPError
from sdp_compile.processes import DAMAGED, WorkerFailure

FAILED, REFUSED, INTERRUPTED = 1, 2, 130


@contextmanager
def clean_errors(debug: bool) -> Iterator[None]:
    """Turns an error into one message and an exit code: see `exit_code`, and 130 for Ctrl-C.

    With ``debug`` the traceback precedes the message; the code stays the same.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
        raise  # typer's own, and a reader such as `head` that has closed the pipe
    except SDPError as error:
        _tell(error, str(error), debug)
        raise typer.Exit(exit_code(error)) from None
    except Exception as error:
        message = " ".join(str(error).split())
        _tell(
            error,
            f"unexpected {type(error).__name__}" + (f": {message}" if message else "") + ". This is a bug in "
            "sdp-compile or in a library that it uses" + ("." if debug else "; --debug shows where."),
            debug,
        )
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        console = Console(stderr=True)
        console.show_cursor()
        console.print("Stopped; all workers have ended.")
        raise typer.Exit(INTERRUPTED) from None


def exit_code(error: Exception) -> int:
    """Returns the exit code for an error."""
    if isinstance(error, WorkerFailure):
        return DAMAGED if error.damaged else REFUSED if error.expected else FAILED
    if isinstance(error, DamagedState):
        return DAMAGED
    return REFUSED if isinstance(error, SDPError) else FAILED


def _tell(error: Exception, message: str, debug: bool) -> None:
    if debug:
        details = error.details if isinstance(error, WorkerFailure) else ""
        sys.stderr.write(details or "".join(traceback.format_exception(error)))
    console = Console(stderr=True)
    console.print("[bold red]Error:[/] ", end="")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
