"""Finds where in the user's model a graph node comes from."""

from __future__ import annotations

import os
import re

import torch
from torch import fx

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)(?:\n\s*(?P<code>[^\n]*))?')

_TORCH = os.path.dirname(torch.__file__) + os.sep


def source_line(node: fx.Node | None) -> str:
    """Returns ``file:line: code`` of the innermost user frame that made a node, or ``""`` if capture kept none.

    Frames of torch are used only if there are no others. Generated code is never used.
    """
    trace = None if node is None else node.meta.get("stack_trace")
    frames = [frame for frame in _FRAME.finditer(trace or "") if not frame["file"].startswith("<")]
    if not frames:
        return ""
    frame = next((frame for frame in reversed(frames) if not frame["file"].startswith(_TORCH)), frames[-1])
    code = (frame["code"] or "").strip()
    return f"{frame['file']}:{frame['line']}" + (f": {code}" if code else "")


def module_path(node: fx.Node | None) -> str:
    """Returns the path of the innermost module whose forward made a node, or ``""`` for the model itself."""
    stack = None if node is None else node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = list(stack.values())[-1][0]
    return str(path).removeprefix("L['self']").removeprefix(".")
