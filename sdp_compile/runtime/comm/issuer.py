"""Decides when each engine of a process issues its reductions, so that all ranks issue them in one order."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist

from sdp_compile.runtime.waiting.spans import AVERAGE, span


class Awaited(Protocol):
    """The meeting of all workers at the start of a backward."""

    def is_agreed(self) -> bool:
        """Waits for all workers. Returns whether they agree; if not, `finish` finds out why."""

    def finish(self) -> object:
        """Waits for all workers, and raises on all of them if they do not agree."""


class Issuing(Protocol):
    """What the issuer asks of a gradient engine."""

    def meet(self) -> Awaited:
        """Tells the other workers that a backward begins to reduce. Does not wait."""

    def held(self) -> list[str]:
        """The keys of the parameters of which this worker holds a part."""

    def start_all(self) -> None:
        """Issues everything that is not issued yet."""

    def finish(self) -> None:
        """Waits for everything and writes the averages."""

    def abandon(self) -> None:
        """Ends a failed backward: issues what peers wait for, waits for it and discards the result."""


class Issuer:
    """Orders the engines of a process that share a common process group.

    Buckets have a total order, (engine, bucket number). Engines are ordered by their first reduction, which happens at
    the same backward on all ranks. Only the first engine may issue during backward, since nothing can come before it.
    The others, and those that reduce for the first time, issue at its end, one after the other.

    Before the first bucket all workers meet, so that a worker that is elsewhere, such as in a step, is an error on all
    instead of a wrong sum.
    """

    def __init__(self) -> None:
        self._order: list[weakref.ref[Issuing]] = []
        self._created: weakref.WeakKeyDictionary[Issuing, int] = WeakKeyDictionary()
        self._count = 0
        self._backward = -1
        self._taking_part: list[Issuing] = []
        self._meeting: Awaited | None = None

    def add(self, engine: Issuing) -> int:
        """Registers an engine and returns its number; all ranks create theirs in the same order."""
        self._created[engine] = self._count
        self._count += 1
        return self._count - 1

    def remove(self, engine: Issuing) -> None:
        """Forgets an engine; all ranks do so at the same time."""
        self._created.pop(engine, None)
        self._order = [entry for entry in self._order if entry() is not engine]

    def held(self) -> list[str]:
        """The keys of all parameters of which this worker holds a part."""
        return [key for engine in list(self._created) for key in engine.held()]

    def may_issue(self) -> bool:
        """Waits until all workers have arrived somewhere. Returns whether all are in this backward."""
        return self._meeting is None or self._meeting.is_agreed()

    def join(self, engine: Issuing) -> bool:
        """Adds an engine to the current backward. Returns whether it may issue before the end of backward."""
        # The number of the backward, and not a flag: a backward that fails never runs its callbacks.
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._abandon()
            self._backward = backward
            self._meeting = engine.meet()
            torch.autograd.Variable._execution_engine.queue_callback(self._end)
        self._taking_part.append(engine)
        first = next((known for known in (entry() for entry in self._order) if known is not None), None)
        return first is engine

    def settle(self) -> None:
        """Ends what a failed backward has left; called before every other collective."""
        if self._taking_part and torch._C._current_graph_task_id() == -1:
            self._abandon()

    def reduce(self, engine: Issuing) -> None:
        """Reduces outside a backward."""
        self.settle()
        self._meeting = engine.meet()
        self._run([engine])

    def _end(self) -> None:
        engines, self._taking_part, self._backward = self._taking_part, [], -1
        self._run(engines)

    def _meet(self) -> None:
        """Waits until all workers are in this backward."""
        meeting, self._meeting = self._meeting, None
        if meeting is not None:
            meeting.finish()

    def _run(self, engines: list[Issuing]) -> None:
        with span(AVERAGE):
            self._average(engines)

    def _average(self, engines: list[Issuing]) -> None:
        self._meet()
        self._order = [entry for entry in self._order if entry() is not None]
        known = [entry() for entry in self._order]
        new = sorted((engine for engine in engines if engine not in known), key=self._created.__getitem__)
        ordered = [engine for engine in known if engine is not None and engine in engines] + new
        self._order += [weakref.ref(engine) for engine in new]
        for engine in ordered:
            engine.start_all()
        for engine in ordered:
            engine.finish()

    def _abandon(self) -> None:
        engines, self._taking_part, self._backward = self._taking_part, [], -1
        self._meet()
        for engine in engines:
            engine.abandon()


_issuers: WeakKeyDictionary[dist.ProcessGroup, Issuer] = WeakKeyDictionary()


def issuer_of(group: dist.ProcessGroup) -> Issuer:
    """Returns the issuer of this process for all engines whose workers are ``group``."""
    return _issuers.setdefault(group, Issuer())


class InOrder:
    """Calls issue(0), issue(1), ... in order, whatever order they become ready in.

    Args:
        count: The number of positions.
        issue: Issues a position.
        may_issue: Whether anything may be issued yet; asked each time that a position becomes ready.
    """

    def __init__(self, count: int, issue: Callable[[int], None], may_issue: Callable[[], bool] = lambda: True) -> None:
        self._issue, self._may_issue, self._next, self._ready = issue, may_issue, 0, [False] * count

    def ready(self, position: int) -> None:
        """Marks a position as ready, and issues all positions that no longer wait for an earlier one."""
        self._ready[position] = True
        while self._next < len(self._ready) and self._ready[self._next] and self._may_issue():
            self._next += 1
            self._issue(self._next - 1)

    def rest(self) -> None:
        """Issues all remaining positions, ready or not."""
        while self._next < len(self._ready):
            self._next += 1
            self._issue(self._next - 1)
