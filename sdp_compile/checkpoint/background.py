"""Saving in the background: each worker writes in a thread of its own, and worker 0 gives the checkpoint its name.

The threads take part in no collective, whose order belongs to training. They meet in the process group's key-value
store, through a connection of their own, because a store answers one call after the other.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore

from sdp_compile.checkpoint.items import Item
from sdp_compile.checkpoint.team import as_sdp_error
from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.runtime.waiting.words import workers_text

Answer = TypeVar("Answer")

_PAUSE = 0.02
_NICE = 19
"""How low the priority of writing is: it has time until the next save."""

_LOOK_EVERY = 1.0
"""How often a wait looks whether the store answers, in seconds."""

_TOLD_EVERY = 1.0
"""How often a worker tells the others that it makes progress, in seconds: each time costs an answer of the store."""

_AT_EXIT_SECONDS = 60.0
"""How long a process that ends waits for other workers that make no progress."""


def snapshot(items: Sequence[Item]) -> Iterator[Item]:
    """Copies the values of items into memory of the host before it returns; a copy lives until its item was written.

    Args:
        items: What this worker writes.

    Returns:
        The same items with the values of now.
    """
    # Without waiting for each copy, an accelerator's values go to pinned memory.
    held = deque(
        replace(
            item,
            read=_Held(
                item.read().to("cpu", copy=True, non_blocking=True, memory_format=torch.contiguous_format),
            ),
        )
        for item in items
    )
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()

    def written() -> Iterator[Item]:
        while held:
            yield held.popleft()

    return written()


@dataclass(frozen=True, eq=False)
class _Held:
    values: Tensor

    def __call__(self) -> Tensor:
        return self.values


class Saving:
    """A checkpoint that is being written in the background.

    Attributes:
        path: Where the checkpoint will be when it is whole.
    """

    def __init__(self, path: Path, what: str, write: Callable[[Callable[[], None]], None], meeting: Meeting) -> None:
        self.path, self._what = path, what
        self._write, self._meeting = write, meeting
        self._error: Exception | None = None
        self._error_is_new = False
        # A process that ends waits for it, in `_tell`; for a thread that is no daemon it would wait forever.
        self._thread = threading.Thread(target=self._run, name="sdp.save_checkpoint", daemon=True)

    def done(self) -> bool:
        """Returns whether `wait` would return at once, or raise."""
        return not self._thread.is_alive()

    def wait(self) -> Path:
        """Waits until all workers have written their parts and the checkpoint has its name. Not collective.

        Returns:
            The checkpoint.

        Raises:
            SDPError: If this worker could not write its part.
            DistributedError: If another worker could not, or has ended.
        """
        self.join()
        if self._error is not None:
            self._error_is_new = False
            raise self._error
        return self.path

    def join(self) -> None:
        """Waits for the end of the thread.

        Raises:
            DistributedError: If the process group's store does not answer it.
        """
        while self._thread.is_alive():
            self._thread.join(_LOOK_EVERY)
            self._meeting.check_answers()

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    def report(self) -> None:
        """Raises the error that nobody has seen yet, if there is one, after all is written."""
        self.join()
        if self._error_is_new:
            self.wait()

    @torch.no_grad()
    def _run(self) -> None:
        mine: Exception | None = None
        if sys.platform == "linux":  # where a thread has a priority of its own: training goes first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        try:
            self._write(self._meeting.advance)
        except Exception as error:
            mine = as_sdp_error(self._what, error)
        try:
            verdict = self._meeting.end("" if mine is None else str(mine))
        except Exception as error:
            verdict, mine = "", mine or as_sdp_error(self._what, error)
        self._error = mine or self._meeting.failure or (DistributedError(verdict) if verdict else None)
        self._error_is_new = self._error is not None


class Meeting:
    """Where the threads of all workers meet at the end of a save.

    Args:
        group: The workers' process group; None for one worker.
        limit: How long a worker waits for others that make no progress, in seconds.
        what: The call, for errors.
        commit: What worker 0 does when all have written.
        discard: What worker 0 does if any could not.

    Attributes:
        failure: Why ``commit`` failed, if it did.
    """

    failure: Exception | None = None
    _asked_at: float | None = None

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        limit: float,
        what: str,
        commit: Callable[[], None],
        discard: Callable[[], None],
    ) -> None:
        self._limit, self._what, self._commit, self._discard = limit, what, commit, discard
        self._rank, self._workers, self._told = 0, 1, float("-inf")
        if group is not None:
            self._rank, self._workers = dist.get_rank(group), dist.get_world_size(group)
            # Worker 0 serves the store as long as this object is there.
            self._served = dist.distributed_c10d._get_process_group_store(group)
            number = PrefixStore("sdp_compile", self._served).add(f"saves/{self._rank}", 1)
            self._store = PrefixStore(f"sdp_compile/save/{number}", self._served.clone())

    def check_answers(self) -> None:
        """Raises `DistributedError` if the store has not answered a question for as long as a worker waits."""
        asked = self._asked_at
        if asked is not None and time.monotonic() - asked > self._limit:
            raise DistributedError(
                f"The process group's store has not answered worker {self._rank} for {self._limit:.0f} s in "
                f"{self._what}. Whether the checkpoint is whole, only its folder tells."
            )

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """Returns the store's answer, which `check_answers` waits for: a store that hangs never returns."""
        self._asked_at = time.monotonic()
        try:
            return question()
        finally:
            self._asked_at = None

    def advance(self) -> None:
        """Tells the others that this worker makes progress, at most once per second."""
        now = time.monotonic()
        if self._workers > 1 and now - self._told >= min(_TOLD_EVERY, self._limit / 4):
            self._told = now
            self._ask(lambda: self._store.add("progress", 1))

    def end(self, error: str) -> str:
        """Tells the others that this worker has written its part, or why it could not, and waits for them.

        Returns:
            Why there is no checkpoint, for workers that are not at fault themselves; empty if there is one.
        """
        if self._workers == 1:
            return self._decided([error])
        try:
            self._ask(lambda: self._store.set(f"rank/{self._rank}", json.dumps(error)))
            return self._lead() if self._rank == 0 else self._follow()
        except (RuntimeError, OSError) as lost:
            raise DistributedError(
                f"Worker {self._rank} lost the process group's store in {self._what}, because the process that serves "
                "it has ended. Whether the checkpoint is whole, only its folder tells."
            ) from lost

    def _lead(self) -> str:
        keys = [f"rank/{rank}" for rank in range(self._workers)]
        if self._wait(lambda: self._store.check(keys)):
            verdict = self._decided([json.loads(text) for text in self._ask(lambda: self._store.multi_get(keys))])
        else:
            there = [self._ask(partial(self._store.check, [key])) for key in keys]
            absent = [rank for rank, is_there in enumerate(there) if not is_there]
            verdict = f"{self._what}: {workers_text(absent)} did not write for {self._limit:.0f} s."
            self._discard()
        self._ask(lambda: self._store.set("verdict", verdict))
        self._wait(lambda: self._store.add("read", 0) >= self._workers - 1)  # the store may end with this process
        return verdict

    def _follow(self) -> str:
        if not self._wait(lambda: self._store.check(["verdict"]), 2):  # worker 0 itself may need all of its time
            return f"{self._what}: worker 0 did not answer for {2 * self._limit:.0f} s."
        verdict: str = self._ask(lambda: self._store.get("verdict")).decode()
        self._ask(lambda: self._store.add("read", 1))
        return verdict

    def _decided(self, errors: list[str]) -> str:
        failed = [rank for rank, error in enumerate(errors) if error]
        if failed:
            self._discard()
            return f"{workers_text(failed)} failed in {self._what}: {errors[failed[0]]}"
        try:
            self._commit()
        except Exception as error:
            self._discard()
            self.failure = as_sdp_error(self._what, error)
            return f"Worker 0 failed in {self._what}: {self.failure}"
        return ""

    def _wait(self, is_there: Callable[[], bool], limits: int = 1) -> bool:
        """Polls; False after the limit, so many times, without progress of any worker."""
        last, seen = time.monotonic(), -1
        while not self._ask(is_there):
            now, progress = time.monotonic(), self._ask(lambda: self._store.add("progress", 0))
            if progress != seen:
                last, seen = now, progress
            ends = not threading.main_thread().is_alive()  # Python waits for this thread alone
            if now - last > limits * (min(self._limit, _AT_EXIT_SECONDS) if ends else self._limit):
                return False
            time.sleep(_PAUSE)
        return True


_last: Saving | None = None
"""The save that was begun last by this process; the next one waits for it."""


def begin(saving: Saving) -> Saving:
    """Starts a save, after `settle`."""
    global _last
    _last = saving
    saving.start()
    return saving


def settle(raises: bool = True) -> None:
    """Waits for the save before.

    Args:
        raises: Whether to raise its error, if nobody has seen it.
    """
    if _last is None:
        return
    if raises:
        _last.report()
    else:
        with suppress(DistributedError):
            _last.join()


def _tell() -> None:
    """Says at the end of the process that there is no checkpoint, if nobody has asked."""
    try:
        settle()
    except SDPError as error:
        sys.stderr.write(f"{error}\n")


atexit.register(_tell)
