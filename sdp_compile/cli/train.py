"""``sdp-compile train``: the main job, from the options to the workers that do it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sdp_compile.errors import SDPError
from sdp_compile.processes import launch, worker_command
from sdp_compile.train.settings import TrainSettings


def train(settings: TrainSettings) -> None:
    """Start ``settings.workers`` workers here and see them through."""
    check_policy(settings)
    prepare_output(settings)
    launch(worker_command("sdp_compile.train.worker", settings.dumps()), settings.workers)


def join(settings: TrainSettings) -> None:
    """Be one worker of the process group that torchrun has set up."""
    from sdp_compile.train.worker import describe, work

    prepare_output(settings)
    try:
        work(settings)
    except Exception as error:
        if settings.debug:
            raise
        rank = int(os.environ["RANK"])
        sys.stderr.write(f"[worker {rank}] Error: {describe(error, rank)}\n")
        sys.stderr.flush()
        os._exit(2 if isinstance(error, SDPError) else 1)  # at once: torchrun ends the others


def check_policy(settings: TrainSettings) -> None:
    """Refuse a policy that cannot be made, before any worker is started for it."""
    from sdp_compile.train.policy import choose_policy

    choose_policy(settings)


def prepare_output(settings: TrainSettings) -> None:
    """Make the folders that the run will write to, so that it does not end in an error after minutes of work."""
    for folder in (Path(settings.output), settings.report_path.parent):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SDPError(
                f"{folder}: cannot write there ({error.strerror}); choose another --output or --json"
            ) from None
        if not os.access(folder, os.W_OK):
            raise SDPError(f"{folder}: this user may not write there; choose another --output or --json")
