"""``sdp-compile train``: starts the workers of the main job, and shows what came of it."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import typer
from rich.console import Console

from sdp_compile.cli.clean_errors import exit_code
from sdp_compile.cli.train_report import render
from sdp_compile.errors import SDPError
from sdp_compile.processes import STOPPED, worker_command
from sdp_compile.restarts import launch_again
from sdp_compile.train.settings import TrainSettings


def train(settings: TrainSettings) -> None:
    """Runs the job with ``settings.workers`` workers on this machine and prints its tables."""
    check_policy(settings)
    prepare_output(settings)
    check_new(settings)
    console = Console(stderr=True)

    def command(workers: int, restart: int) -> list[str]:
        changed = replace(settings, workers=workers, resume="auto" if restart else settings.resume)
        return worker_command("sdp_compile.train.worker", changed.dumps())

    def tell(words: str) -> None:
        console.print(f"{words[0].upper()}{words[1:]}", markup=False, highlight=False, soft_wrap=True)

    restarts, least = settings.max_restarts, settings.min_workers
    if launch_again(command, settings.workers, restarts, least, tell, settings.checkpoint is not None) == STOPPED:
        console.print(f"Stopped; saved a checkpoint in {settings.checkpoint}.", markup=False, soft_wrap=True)
        raise typer.Exit(STOPPED)
    show(settings)


def check_new(settings: TrainSettings) -> None:
    """Raises `SDPError` where a restart would go on from the checkpoints of another run."""
    if settings.max_restarts and settings.resume is None and settings.checkpoint is not None:
        there = sorted(Path(settings.checkpoint).glob("step-*/manifest.json"))
        if there:
            raise SDPError(
                f"{settings.checkpoint} has checkpoints of an earlier run, such as {there[-1].parent.name}. Pass "
                "--resume auto to go on from it, or choose another folder."
            )


def join(settings: TrainSettings) -> None:
    """Runs one worker of the process group that torchrun has set up; rank 0 prints the tables."""
    from sdp_compile.train.worker import describe, work

    prepare_output(settings)
    rank = int(os.environ["RANK"])
    try:
        work(settings)
    except Exception as error:
        if settings.debug:
            raise
        sys.stderr.write(f"[worker {rank}] Error: {describe(error, rank)}\n")
        sys.stderr.flush()
        os._exit(exit_code(error))  # at once: torchrun ends the others
    if rank == 0:
        show(settings)


def show(settings: TrainSettings) -> None:
    """Prints the tables of the report that the workers wrote."""
    console = Console()
    console.print(render(json.loads(settings.report_path.read_text())))
    console.print(f"Wrote {settings.model_path} and {settings.report_path}.", soft_wrap=True, markup=False)


def check_policy(settings: TrainSettings) -> None:
    """Raises `PolicyError` for a policy or schedule that cannot be made, before a worker is started."""
    from sdp_compile.train.policy import choose_schedule

    choose_schedule(settings)


def prepare_output(settings: TrainSettings) -> None:
    """Makes the folders that the run writes to, so that a wrong path is an error before minutes of work."""
    for folder in (Path(settings.output), settings.report_path.parent):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SDPError(
                f"{folder}: cannot write there ({error.strerror}). Choose another --output or --json."
            ) from None
        if not os.access(folder, os.W_OK):
            raise SDPError(f"{folder}: this user may not write there. Choose another --output or --json.")
