"""Waits for collectives, but not for those that cannot end because a worker has left or waits in another one."""

from __future__ import annotations

import time
import warnings
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from sdp_compile.errors import DistributedError
from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.runtime.waiting.board import Board
from sdp_compile.runtime.waiting.observer import LOOK_EVERY, board_of
from sdp_compile.runtime.waiting.spans import WAIT, span
from sdp_compile.runtime.waiting.state import Wait, current_waits
from sdp_compile.runtime.waiting.words import places, stalled

ASK_EVERY = 5.0
"""After how many seconds of waiting the workers are asked what they do, and how often again."""

STALLED_AFTER = 30.0
"""After how many seconds workers that all wait, but in different collectives, give up."""

WARN_AFTER = 60.0
"""After how many seconds a worker warns that it waits for others that compute."""

_STEP = timedelta(seconds=1)


class Patience:
    """Decides how long this worker waits in one collective.

    Args:
        wait: The collective.
        rank: This worker.
    """

    def __init__(self, wait: Wait, rank: int) -> None:
        self._wait, self._members, self._rank = wait, wait.members, rank
        self._window, self._has_warned = -1, False

    def step(self) -> None:
        """Called about once a second while the worker waits.

        Raises:
            DistributedError: On all workers with the same text, if the wait cannot end.
        """
        waited = time.monotonic() - self._wait.began
        board = board_of(self._rank, self._members) if waited >= ASK_EVERY else None
        if board is not None:
            try:
                verdict = board.verdict() or self._ask(board, waited)
            except RuntimeError:
                return  # the process that serves the store has ended, so the collective fails soon
            if verdict:
                time.sleep(2 * LOOK_EVERY)  # a worker in a collective of the user's prints it before this one ends
                raise DistributedError(verdict)

    def _ask(self, board: Board, waited: float) -> str:
        window = int(time.time() / ASK_EVERY)
        if window == self._window:
            return ""
        self._window = window
        if not board.is_first(f"patrol {window}"):  # one worker asks for all of them
            return ""
        states, asked = board.ask()
        verdict = stalled(states, self._members, asked, STALLED_AFTER)
        if verdict:
            return board.decide(verdict)
        if waited > WARN_AFTER and not self._has_warned:
            self._has_warned = True
            warnings.warn(f"Worker {self._rank} has waited for {waited:.0f} s:\n{places(states, asked)}", stacklevel=2)
        return ""


_patience: list[Patience] = []
"""That of each of `current_waits`."""


class waiting:
    """Context in which this worker waits in one collective.

    Args:
        call: What identifies the collective: all members have the same text.
        doing: Where the worker is, for errors.
        members: The workers that take part.
        rank: This worker.
    """

    # A class, and no generator: each collective enters it twice.
    def __init__(self, call: str, doing: str, members: OwnerSet, rank: int) -> None:
        self._wait = Wait(call, members, doing, time.monotonic())
        self._rank = rank

    def __enter__(self) -> None:
        current_waits.append(self._wait)
        _patience.append(Patience(self._wait, self._rank))

    def __exit__(self, *_: object) -> None:
        _patience.pop()
        current_waits.pop()


def step() -> None:
    """Called about once a second in a wait that is not that of `complete`.

    Raises:
        DistributedError: On all workers with the same text, if the wait cannot end.
    """
    if _patience:
        _patience[-1].step()


def complete(work: dist.Work | None, tensor: Tensor) -> None:
    """Waits for a collective: on the CPU in steps, elsewhere like ``work.wait()``, which does not block the host.

    Args:
        work: The collective, issued with ``async_op=True``.
        tensor: A tensor of it.

    Raises:
        DistributedError: On all workers with the same text, if the wait cannot end.
    """
    if work is None:
        return
    if tensor.device.type != "cpu":
        work.wait()
        return
    with span(WAIT):
        _wait(work)


def _wait(work: dist.Work) -> None:
    if not _patience:
        work.wait()
        return
    while True:
        try:
            work.wait(_STEP)
            return
        except RuntimeError:
            if work.is_completed():
                work.wait()  # with the error of the collective itself, if it has failed
                return
        step()
