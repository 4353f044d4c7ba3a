"""What this process does at the moment: the collective that it waits in, if any, and the user's line."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from sdp_compile.ownership.owners import OwnerSet

_LIBRARIES = tuple(
    os.path.join(folder, "")
    for folder in (Path(torch.__file__).parent, Path(__file__).parents[2], sysconfig.get_path("stdlib"))
)
"""Folders whose code is not the user's."""

_COLLECTIVES = dist.distributed_c10d.__file__


@dataclass(frozen=True)
class Wait:
    """A collective of this package that this worker waits in.

    Attributes:
        name: What it is called.
        members: The workers that take part.
        doing: Where the worker is, for errors: "in an optimizer's step".
        began: When it began, by `time.monotonic`.
    """

    name: str
    members: OwnerSet
    doing: str
    began: float

    @property
    def call(self) -> str:
        """What identifies it: all members of one collective have the same text."""
        return f"{self.name} {self.members}"


current_waits: list[Wait] = []
"""The collectives of this package that this process waits in, the innermost last."""


@dataclass(frozen=True)
class State:
    """Where a worker is.

    Attributes:
        doing: Where it is, for errors: "in an optimizer's step (train.py, line 12, in main)".
        call: What identifies the collective that it waits in; empty if it waits in none.
        seconds: For how long it has waited there.
        asked: How often workers had asked when it answered.
        left: Why it answers no more: "ended without an error"; empty while it does.
    """

    doing: str = ""
    call: str = ""
    seconds: float = 0.0
    asked: int = 0
    left: str = ""

    def text(self) -> str:
        """Returns the state as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def of(text: str | bytes) -> State:
        """Returns the state that `text` wrote."""
        return State(**json.loads(text))


class Watch:
    """Notices for how long the process has been in one collective of the user's."""

    def __init__(self) -> None:
        self._seen: tuple[str, str, str] = ("", "", "")
        self._since = time.monotonic()

    def state(self, asked: int) -> State:
        """Returns what the process does now.

        Args:
            asked: How often workers have asked.
        """
        frames = list(_frames(sys._current_frames().get(threading.main_thread().ident or 0)))
        line = next((_line(frame) for frame in frames if not frame.f_code.co_filename.startswith(_LIBRARIES)), "")
        at = f" ({line})" if line else ""
        wait = current_waits[-1] if current_waits else None
        if wait is not None:
            return State(f"{wait.doing}{at}", wait.call, time.monotonic() - wait.began, asked)
        names = [frame.f_code.co_name for frame in frames if frame.f_code.co_filename == _COLLECTIVES]
        if not names:
            return State(f"in no collective{at}", asked=asked)
        call = f"torch.distributed.{names[-1]}()"
        seen = (call, line, _progress())
        if seen != self._seen:
            self._seen, self._since = seen, time.monotonic()
        return State(f"in {call}{at}", call, time.monotonic() - self._since, asked)


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yields the innermost frame and its callers."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _line(frame: FrameType) -> str:
    return f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}, in {frame.f_code.co_name}"


def _progress() -> str:
    """Returns what torch's flight recorder knows of the progress of all process groups; empty without it."""
    try:
        dump: Callable[..., bytes] = getattr(torch._C._distributed_c10d, "_dump_fr_trace_json")  # noqa: B009
        dumped = dump(includeCollectives=False)
        return str(json.loads(dumped).get("pg_status"))
    except (AttributeError, RuntimeError, ValueError):
        return ""
