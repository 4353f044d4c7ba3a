"""A process that checks models, and is ended and started again when one takes too long or crashes it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tools.packages.trial import Row, check_model, row

_MOST = 5 * 2**30
"""Bytes that a process may hold after a model; the allocator gives back little of what a large one took."""


class Checker:
    """Checks one model at a time in a process of its own.

    Attributes:
        timeout: Seconds for one model, after which it counts as a crash.
    """

    def __init__(self, timeout: float, settings: dict[str, Any]) -> None:
        """Starts nothing yet.

        Args:
            timeout: Seconds for one model.
            settings: Arguments of `check_model` other than the name.
        """
        self.timeout = timeout
        self._settings = settings
        self._process: Any = None
        self._connection: Connection | None = None

    def check(self, name: str) -> Row:
        """Returns the row of a model."""
        start = time.perf_counter()
        if self._connection is None:
            self._start()
        connection = self._connection
        assert connection is not None
        try:
            connection.send(name)
            if connection.poll(self.timeout):
                found: Row = connection.recv()
                if _resident(self._process.pid) > _MOST:
                    self.close()
                return found
            reason = f"no verdict within {self.timeout:.0f} s"
        except (EOFError, OSError):
            self._process.join()
            reason = f"its process ended with exit code {self._process.exitcode}"
        self.close()
        return row(name, "crash", reason, time.perf_counter() - start)

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = self._connection = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, self._settings), daemon=True)
        self._process.start()
        other.close()


def _resident(pid: int) -> int:
    """Returns the bytes that a process has in memory; 0 where the system does not tell."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _serve(connection: Connection, settings: dict[str, Any]) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        while True:
            try:
                name = connection.recv()
            except EOFError:
                return
            connection.send(check_model(name, **settings))
