"""Finds the lines of the user's code at which something changes."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from sdp_compile.capture.users import is_users


def lines_of_changes(run: Callable[[], object], probes: Sequence[Callable[[], Any]]) -> list[str]:
    """Returns for each probe ``file:line: code`` of the first line that changes what it returns, or ``""``.

    Args:
        run: Runs the code. What it raises is dropped.
        probes: Each returns something that can be compared. They are called after every line, so this is slow.
    """
    found = [""] * len(probes)
    left = {number: probe() for number, probe in enumerate(probes)}
    lines: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if not is_users(frame.f_code.co_filename):
            return None
        if event in ("line", "return"):
            for number in [number for number, before in left.items() if probes[number]() != before]:
                del left[number]
                line, name = lines.get(frame, frame.f_lineno), frame.f_code.co_filename
                found[number] = f"{name}:{line}: {linecache.getline(name, line).strip()}"
        lines[frame] = frame.f_lineno
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    except Exception:
        pass
    finally:
        sys.settrace(before)
    return found
