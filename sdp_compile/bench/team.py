"""The processes of one variant, as the parent sees them: asked together, watched, ended together."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.variants import Variant
from sdp_compile.bench.worker import STOP, main
from sdp_compile.errors import DistributedError

_GRACE = 3.0  # seconds: for workers that fail together to say why
_ORDERLY = 1.0  # seconds: for waiting workers to end
_LOG_LINES = 40


class TeamFailure(DistributedError):
    """A variant's workers failed or hang; ``details`` is the traceback and what the worker printed last."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Team:
    """The workers of one variant. They live until `stop`, and wait between two questions without using the CPU."""

    def __init__(self, variant: Variant, settings: BenchSettings, folder: Path) -> None:
        # One server imports torch once; each worker is a fork of it, which shares that memory.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["sdp_compile.bench.worker"])
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
        """Each worker's answer, by rank."""
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send_bytes(json.dumps(command).encode())
            except OSError:
                raise self._ended(rank) from None
        return self.answers()

    def answers(self) -> list[dict[str, Any]]:
        """What each worker says next, by rank. Raises `TeamFailure` with what went wrong first."""
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
        if ended:  # without a word; what the others report is of that
            raise ended[min(ended)]
        if errors:
            first = min(errors, key=lambda rank: float(errors[rank]["time"]))
            raise TeamFailure(f"worker {first}: {errors[first]['error']}", self._details(first, errors[first]))
        if len(answers) < len(self._pipes):
            missing = ", ".join(str(rank) for rank in sorted(ranks.values()))
            raise TeamFailure(
                f"no answer from worker {missing} within {self._timeout:g} s; --timeout gives more time",
                self._details(min(ranks.values()), {}),
            )
        return [answers[rank] for rank in range(len(self._pipes))]

    def stop(self) -> None:
        """Ends all workers: those that wait end in order, those that hang are killed."""
        for pipe in self._pipes:
            with suppress(OSError):  # gone already
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
            hint = " (out of memory? fewer --workers or --variants need less)" if -code == signal.SIGKILL else ""
            message = f"worker {rank} was ended by {signal.Signals(-code).name}{hint}"
        else:
            message = f"worker {rank} ended with exit code {code} and no message"
        return TeamFailure(message, self._details(rank, {}))

    def _details(self, rank: int, answer: Mapping[str, Any]) -> str:
        log = self._logs[rank]
        words = log.read_text(errors="replace").splitlines()[-_LOG_LINES:] if log.exists() else []
        return "\n".join([*words, str(answer.get("details", ""))]).strip() + "\n"
