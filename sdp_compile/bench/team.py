"""The processes of one variant, seen from the parent, which asks, watches and ends them together."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.variants import Variant
from sdp_compile.bench.worker import STOP, main
from sdp_compile.errors import DistributedError

_GRACE = 3.0  # seconds for workers that fail together to say why
_ORDERLY = 1.0  # seconds for waiting workers to end
_LOG_LINES = 40


class TeamFailure(DistributedError):
    """The workers of a variant failed or hang; ``details`` holds the traceback and a worker's last lines of output."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Team:
    """Starts the workers of one variant. They live until `stop` and use no CPU between two questions.

    Args:
        variant: The variant that they train.
        settings: The settings of the run.
        folder: Folder for their output.
    """

    def __init__(self, variant: Variant, settings: BenchSettings, folder: Path) -> None:
        # A server imports torch once, and each worker is a fork that shares its memory.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["sdp_compile.bench.worker"])
        _start_server()
        self._timeout = settings.timeout
        self._logs = [folder / f"{variant.name}-{rank}.log" for rank in range(settings.workers)]
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        self._pipes: list[Connection] = []
        self._processes: list[ForkServerProcess] = []
        for rank, log in enumerate(self._logs):
            ours, theirs = context.Pipe()
            arguments = (theirs, variant.name, rank, self._store.port, str(log), settings.dumps())
            process = context.Process(target=main, args=arguments, daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def ask(self, command: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Sends a command to all workers and returns their answers by rank.

        Raises:
            TeamFailure: If a worker fails, ends or does not answer in time.
        """
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send_bytes(json.dumps(command).encode())
            except OSError:
                raise self._ended(rank) from None
        return self.answers()

    def answers(self) -> list[dict[str, Any]]:
        """Waits for the next answer of each worker and returns them by rank.

        Raises:
            TeamFailure: If a worker fails, ends or does not answer in time, with the first failure.
        """
        answers: dict[int, dict[str, Any]] = {}
        ended: dict[int, TeamFailure] = {}
        deadline = time.monotonic() + self._timeout
        ranks = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        while ranks:
            ready = wait(list(ranks), max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for pipe in ready:
                assert isinstance(pipe, Connection)
                rank = ranks.pop(pipe)
                try:
                    answers[rank] = json.loads(pipe.recv_bytes())
                except (EOFError, OSError):
                    ended[rank] = self._ended(rank)
                if rank in ended or "error" in answers[rank]:
                    deadline = min(deadline, time.monotonic() + _GRACE)
        errors = {rank: answer for rank, answer in answers.items() if "error" in answer}
        if ended:  # these ended without a message and caused the errors of the others
            raise ended[min(ended)]
        if errors:
            first = min(errors, key=lambda rank: float(errors[rank]["time"]))
            raise TeamFailure(f"worker {first}: {errors[first]['error']}", self._details(first, errors[first]))
        if len(answers) < len(self._pipes):
            missing = ", ".join(str(rank) for rank in sorted(ranks.values()))
            raise TeamFailure(
                f"no answer from worker {missing} within {self._timeout:g} s; see --timeout",
                self._details(min(ranks.values()), {}),
            )
        return [answers[rank] for rank in range(len(self._pipes))]

    def stop(self) -> None:
        """Ends all workers: waiting ones exit, hanging ones are killed."""
        for pipe in self._pipes:
            with suppress(OSError):  # already gone
                pipe.send_bytes(json.dumps(STOP).encode())
        deadline = time.monotonic() + _ORDERLY
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def _ended(self, rank: int) -> TeamFailure:
        process = self._processes[rank]
        process.join(_GRACE)
        code = process.exitcode
        if code is not None and code < 0:
            hint = " (out of memory? Try fewer --workers or --variants)" if -code == signal.SIGKILL else ""
            message = f"worker {rank} was killed by {signal.Signals(-code).name}{hint}"
        else:
            message = f"worker {rank} ended with exit code {code} and without a message"
        return TeamFailure(message, self._details(rank, {}))

    def _details(self, rank: int, answer: Mapping[str, Any]) -> str:
        log = self._logs[rank]
        lines = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
        return "\n".join([*lines, str(answer.get("details", ""))]).strip() + "\n"


def _start_server() -> None:
    """Starts the server unless it runs. Ctrl-C reaches it and its forks as well, but the parent ends them all."""
    resource_tracker.ensure_running()  # it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()  # inherits what is blocked
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
