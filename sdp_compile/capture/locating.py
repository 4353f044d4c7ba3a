"""Finds the line of the user's code at which something changes."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from sdp_compile.capture.users import is_users


def line_of_change(run: Callable[[], object], probe: Callable[[], Any]) -> str | None:
    """Returns ``file:line: code`` of the first line that changes what ``probe`` returns, or None.

    Args:
        run: Runs the code. What it raises is dropped.
        probe: Returns something that can be compared. It is called after every line, so this is slow.
    """
    found: list[str] = []
    last: list[Any] = [probe()]
    lines: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if not is_users(frame.f_code.co_filename):
            return None
        if event in ("line", "return") and not found:
            now = probe()
            if now != last[0]:
                number = lines.get(frame, frame.f_lineno)
                name = frame.f_code.co_filename
                found.append(f"{name}:{number}: {linecache.getline(name, number).strip()}")
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
    return found[0] if found else None
