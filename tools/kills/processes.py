"""Starts the workers of a run, follows what they tell, and sees to it that none is left."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from sdp_compile.structure.analysis import Analysis
from tools.kills.trial import WORKERS
from tools.kills.worker import Orders, stack_file, work

Event = dict[str, Any]


class Workers:
    """The workers of one run, each a fork of this process.

    Args:
        orders: What they do.
        timeout: That of their process group, in seconds.
        analysis: The captured model.

    Attributes:
        events: What they have told so far.
    """

    def __init__(self, orders: Orders, timeout: float, analysis: Analysis) -> None:
        self.events: list[Event] = []
        self._orders = orders
        self._codes: dict[int, int] = {}
        self._rest = b""
        with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
            self._pipe, theirs = os.pipe()
            self._pids: list[int] = []
            for rank in range(WORKERS):
                pid = os.fork()
                if pid == 0:
                    os.setpgid(0, self._pids[0] if self._pids else 0)
                    os.close(self._pipe)
                    port = listening.getsockname()[1]
                    work(orders, rank, listening.detach(), port, theirs, timeout, analysis)
                self._pids.append(pid)
                os.setpgid(pid, self._pids[0])
        os.close(theirs)

    def follow(self, until: Callable[[Event], bool], deadline: float) -> Event | None:
        """Returns the first event of a kind; None after the deadline, or when all workers have ended."""
        while True:
            while b"\n" in self._rest:
                line, self._rest = self._rest.split(b"\n", 1)
                event = json.loads(line)
                self.events.append(event)
                if until(event):
                    return event
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._pipe], [], [], left)[0]:
                return None
            content = os.read(self._pipe, 2**16)
            if not content:
                return None
            self._rest += content

    def send(self, ranks: Iterable[int], number: signal.Signals) -> None:
        """Sends a signal to workers that have not ended."""
        for rank in ranks:
            if not self._has_ended(rank):
                os.kill(self._pids[rank], number)

    def wait_stopped(self, rank: int, deadline: float) -> None:
        """Waits until a worker that has told so stands still: what comes before would not make it go on."""
        while not self._has_ended(rank) and time.monotonic() < deadline:
            if os.waitid(os.P_PID, self._pids[rank], os.WSTOPPED | os.WNOHANG | os.WNOWAIT):
                return
            time.sleep(0.001)

    def ended(self, deadline: float) -> list[int]:
        """Follows the workers to their end. Returns those that have not ended by the deadline."""
        self.follow(lambda _: False, deadline)
        while not all(self._has_ended(rank) for rank in range(WORKERS)) and time.monotonic() < deadline:
            self.follow(lambda _: False, min(deadline, time.monotonic() + 0.02))
            time.sleep(0.005)
        return [rank for rank in range(WORKERS) if not self._has_ended(rank)]

    def stacks(self, ranks: Iterable[int]) -> str:
        """Returns where workers are that do not end."""
        ranks = list(ranks)
        for number in (signal.SIGCONT, signal.SIGUSR2) if ranks else ():
            self.send(ranks, number)
            time.sleep(2)
        return "\n".join(stack_file(self._orders, rank).read_text()[:3000] for rank in ranks)

    def codes(self) -> dict[int, int]:
        """Returns the exit codes of those that have ended, negative for signals."""
        for rank in range(WORKERS):
            self._has_ended(rank)
        return dict(self._codes)

    def end(self) -> str:
        """Kills what is left. Returns in words what stays even so; empty if nothing does."""
        self.send(range(WORKERS), signal.SIGKILL)
        left = self.ended(time.monotonic() + 20)
        os.close(self._pipe)
        if left:
            return f"workers {left} cannot be killed"
        try:
            os.killpg(self._pids[0], signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return ""
        return "a process of the workers is left"

    def _has_ended(self, rank: int) -> bool:
        if rank not in self._codes:
            pid, status = os.waitpid(self._pids[rank], os.WNOHANG)
            if pid:
                self._codes[rank] = os.waitstatus_to_exitcode(status)
        return rank in self._codes
