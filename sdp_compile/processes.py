"""Local workers as child processes: started together, watched, and ended together.

The parent does not import torch. It opens the listening socket of the workers' store and hands it to rank 0, so that no
other process can take the port first. It holds one end of a pipe, and every worker watches the other end, so that
workers end even if the parent is killed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sdp_compile.errors import DistributedError

STORE_PORT = "SDP_COMPILE_STORE_PORT"
STORE_FD = "SDP_COMPILE_STORE_FD"
LEASH_FD = "SDP_COMPILE_LEASH_FD"
FAILURES = "SDP_COMPILE_FAILURES"

STOPPED = 75
"""The exit code of a worker that was given notice, saved a checkpoint and stopped: EX_TEMPFAIL, "try again"."""

DAMAGED = 65
"""The exit code of a worker that stopped because owners differ or values are infinite or NaN: EX_DATAERR."""

NOTICES = (signal.SIGTERM, signal.SIGUSR1)
"""The signals with which schedulers announce that a job will end."""

_GRACE = 3.0  # seconds for workers that fail together to report, and again between SIGTERM and SIGKILL


class WorkerFailure(DistributedError):
    """A worker failed.

    Args:
        message: What happened.
        details: Its traceback.
        expected: Whether it raised an error of this package.
        may_pass: Whether the same workers may succeed when they are started again: nobody reported an error that the
            user has to correct.
        killed: The workers that a signal ended.

    Attributes:
        damaged: Whether it stopped with `DAMAGED`.
    """

    damaged = False

    def __init__(
        self,
        message: str,
        details: str = "",
        expected: bool = False,
        may_pass: bool = False,
        killed: tuple[int, ...] = (),
    ) -> None:
        super().__init__(message)
        self.details, self.expected, self.may_pass, self.killed = details, expected, may_pass, killed


def launch(command: Sequence[str], workers: int, hand_on: bool = False) -> int:
    """Runs ``command`` once per rank and returns when all have succeeded. Raises the first `WorkerFailure`.

    Args:
        command: The command.
        workers: How often to run it.
        hand_on: Whether the first of `NOTICES` goes to the workers, which save and stop.

    Returns:
        0, or `STOPPED` if the workers were given notice and stopped.

    Raises:
        WorkerFailure: If a worker failed; the first one.
        KeyboardInterrupt: If they were given notice, and ended before they could save.
    """
    with tempfile.TemporaryDirectory(prefix="sdp-compile-") as failures, _store_socket() as store, _leash() as leash:
        processes: list[subprocess.Popen[bytes]] = []
        with interruptible(), handed_on(processes, hand_on) as notices:
            try:
                for rank in range(workers):
                    environment = _environment(rank, workers, store, leash, failures)
                    passed = (leash, store.fileno()) if rank == 0 else (leash,)
                    # In a session of its own a worker does not get the terminal's Ctrl-C; the parent ends it.
                    process = subprocess.Popen(command, env=environment, pass_fds=passed, start_new_session=True)
                    processes.append(process)
                codes = _wait(processes)
            finally:
                _end(processes)
        if codes and all(code == STOPPED for code in codes):
            return STOPPED
        if notices and any(code in [-number for number in notices] for code in codes):
            raise KeyboardInterrupt
        if any(codes):
            failure = _first_failure(Path(failures), codes)
            failure.may_pass = failure.may_pass and not notices
            failure.damaged = DAMAGED in codes
            raise failure
        return 0


def _environment(rank: int, workers: int, store: socket.socket, leash: int, failures: str) -> dict[str, str]:
    environment = {**os.environ, **local_worker_environment(rank, workers)}
    environment.update({STORE_PORT: str(store.getsockname()[1]), LEASH_FD: str(leash), FAILURES: failures})
    if rank == 0:
        environment[STORE_FD] = str(store.fileno())
    return environment


def local_worker_environment(rank: int, workers: int) -> dict[str, str]:
    """Returns the environment variables of a worker as torchrun sets them, for workers that share this machine."""
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if any(name == "lo" for _, name in socket.if_nameindex()):
        # With all workers on this machine the host's name need not resolve.
        environment["GLOO_SOCKET_IFNAME"] = os.environ.get("GLOO_SOCKET_IFNAME", "lo")
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": workers, "LOCAL_WORLD_SIZE": workers}
    return environment | {name: str(number) for name, number in ranks.items()}


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Waits until all have ended, or briefly after the first failure for the others' reports. Returns exit codes."""
    deadline = float("inf")
    while True:
        codes = [process.poll() for process in processes]
        if any(code not in (None, 0, STOPPED) for code in codes):
            deadline = min(deadline, time.monotonic() + _GRACE)
        if None not in codes or time.monotonic() > deadline:
            return codes
        time.sleep(0.05)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _GRACE
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _first_failure(folder: Path, codes: Sequence[int | None]) -> WorkerFailure:
    """Returns the first failure; later ones are often its consequences, such as a lost connection.

    A worker that a signal ended cannot report, and the others' reports follow from its end, so it comes first.
    """
    reports = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    first = min(reports, key=lambda report: float(report["time"]), default=None)  # later ones may only repeat it
    may_pass = first is None or first.get("may_pass", not first["expected"])
    ended = [rank for rank, code in enumerate(codes) if code is not None and code < 0]
    # A worker that cannot go on without another one may abort.
    killed = [rank for rank in ended if codes[rank] != -signal.SIGABRT] or ended
    if killed:
        names = [signal.Signals(-(codes[rank] or 0)).name for rank in killed]
        hint = " (out of memory? Try fewer --workers)" if names[0] == "SIGKILL" else ""
        more = "".join(f", worker {rank} by {name}" for rank, name in zip(killed[1:], names[1:], strict=True))
        message = f"worker {killed[0]} was ended by {names[0]}{more}{hint}"
        return WorkerFailure(message, may_pass=may_pass, killed=tuple(killed))
    if first is not None:
        return WorkerFailure(first["message"], first["details"], first["expected"], may_pass)
    rank = next(rank for rank, code in enumerate(codes) if code)
    return WorkerFailure(f"worker {rank} ended with exit code {codes[rank]} and no message", may_pass=True)


@contextmanager
def _store_socket() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        yield server


@contextmanager
def _leash() -> Iterator[int]:
    """Yields the end of a pipe that reads as closed once this process is gone."""
    held_by_workers, held_here = os.pipe()
    try:
        yield held_by_workers
    finally:
        os.close(held_by_workers)
        os.close(held_here)


@contextmanager
def interruptible(*more: signal.Signals) -> Iterator[None]:
    """Makes SIGTERM and SIGHUP, and ``more`` signals, end the workers as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP, *more)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def handed_on(processes: Sequence[subprocess.Popen[bytes]], is_wanted: bool) -> Iterator[list[int]]:
    """Hands the first notice on to the workers; the second ends them. Yields a list that will have the notice."""
    given: list[int] = []
    if not is_wanted:
        yield given
        return
    outer = {number: signal.getsignal(number) for number in NOTICES}

    def tell(number: int, frame: FrameType | None) -> None:
        given.append(number)
        for known, handler in outer.items():
            signal.signal(known, handler if known == signal.SIGTERM else signal.SIG_IGN)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    for number in NOTICES:
        signal.signal(number, tell)
    try:
        yield given
    finally:
        for number, handler in outer.items():
            signal.signal(number, handler)


def worker_command(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs a module of this package as a worker, with the same Python."""
    return [sys.executable, "-m", module, *arguments]
