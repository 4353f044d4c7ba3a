"""Tells the other workers on request what this one does, also while its main thread waits in a collective.

A thread looks once a second whether anybody asks, and writes what the main thread does. Nobody asks before a wait has
lasted for seconds, so training without trouble sends nothing but that look.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from contextlib import suppress
from weakref import WeakKeyDictionary

import torch.distributed as dist

from sdp_compile.runtime.waiting.board import Board
from sdp_compile.runtime.waiting.state import State, Watch

LOOK_EVERY = 1.0
"""How often, in seconds, a worker looks whether anybody asks."""

_CALL_WITHIN = 3.0
"""For how many seconds a process that ends waits for its thread's last call of the store."""

_DESTROYED = "destroyed its process group"


class Observer:
    """Answers for one worker of a common group, from a thread, until the process ends or the group does.

    Args:
        group: The common group.

    Attributes:
        board: Where the workers write.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.board = Board(group)
        self._group, self._process = weakref.ref(group), os.getpid()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sdp_compile observer", daemon=True)
        _running.add(self)
        self._thread.start()

    def close(self, why: str) -> None:
        """Tells the others that this worker answers no more.

        Args:
            why: What has become of it.
        """
        if os.getpid() != self._process or not self._thread.is_alive():
            return
        self._closing.set()
        self._thread.join(_CALL_WITHIN)
        with suppress(RuntimeError):  # the process that serves the store has ended before this one
            self.board.write(State(left=why))

    def _run(self) -> None:
        watch, answered, is_told = Watch(), 0, False
        try:
            while not self._closing.wait(LOOK_EVERY):
                if self._group() is None or not dist.is_initialized():
                    self.board.write(State(left=_DESTROYED))
                    return
                asked = self.board.asked()
                state = watch.state(asked) if asked else State()
                if asked != answered:
                    self.board.write(state)
                    answered = asked
                # In a collective of the user's, the error of the others cannot be raised.
                if state.call.startswith("torch.") and not is_told and (verdict := self.board.verdict()):
                    print(f"Worker {self.board.rank} is {state.doing}. {verdict}", file=sys.stderr, flush=True)
                    is_told = True
        except RuntimeError:
            pass  # the process that serves the store has ended
        finally:
            _running.discard(self)


_running: set[Observer] = set()
"""Those whose thread runs, also when their group is gone. A process must not end before them: a thread that is within a
call of torch when the interpreter ends aborts the process."""

_observers: WeakKeyDictionary[dist.ProcessGroup, Observer] = WeakKeyDictionary()
"""Those of this process by common group."""


def observe(group: dist.ProcessGroup) -> None:
    """Starts to answer for this worker of a common group, once. All workers of the group call this.

    Args:
        group: The common group.
    """
    if group in _observers or dist.get_world_size(group) == 1:
        return
    try:
        _observers[group] = Observer(group)
    except (AttributeError, RuntimeError):
        return  # a store that cannot be shared by threads
    atexit.unregister(_leave)
    atexit.register(_leave)


def board_of(rank: int, members: tuple[int, ...]) -> Board | None:
    """Returns the board of the common group in which this process is ``rank``; None if there is none.

    Of several groups of the same processes, the newest has it: what a process does is the same on all boards. Groups of
    different processes cannot be told apart, and have none.

    Args:
        rank: This worker.
        members: Workers of the group.
    """
    boards = [observer.board for observer in _observers.values()]
    fitting = [board for board in boards if board.rank == rank and board.workers > max(members)]
    return fitting[-1] if len({board.processes for board in fitting}) == 1 else None


def _leave() -> None:
    """Tells the others that this process ends, and with which error."""
    error = getattr(sys, "last_value", None)
    first = (str(error).splitlines() or [""])[0]
    why = "ended without an error" if error is None else f"ended with {type(error).__name__}: {first}"
    for observer in list(_running):
        observer.close(why)
