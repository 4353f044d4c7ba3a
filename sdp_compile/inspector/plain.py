"""Views as plain data for JSON, and source positions that are the same on every machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

VERSION = 1
"""Version of the JSON that views are written as. It changes when a field changes its meaning or is removed."""

_POSITION = re.compile(r"(?P<file>.*?):(?P<line>\d+)(?:: (?P<code>.*))?", re.DOTALL)
_CAPTURE = "torch/fx/passes/"
_LIBRARY = re.compile(r".*/(?:site-packages|dist-packages|lib/python[^/]+)/")


class View:
    """Base class of the six views, which are frozen dataclasses of plain data."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the view as dicts, lists, strings and numbers, as ``--json`` writes it."""
        return {"view": type(self).__name__.removesuffix("View").lower(), "version": VERSION, **_fields(self)}


def plain(value: Any) -> Any:
    """Converts dataclasses to dicts and tuples to lists, recursively."""
    if is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def _fields(value: Any) -> dict[str, Any]:
    # A trailing underscore only avoids a Python keyword.
    return {item.name.rstrip("_"): plain(getattr(value, item.name)) for item in fields(value)}


def place(source: str) -> tuple[str, str]:
    """Splits a `sdp_compile.ir.source.source_line` into ``file:line``, with a short path, and the code there.

    Both are empty for code outside the model: capture computes some sizes itself.
    """
    match = _POSITION.fullmatch(source.strip())
    if match is None or _CAPTURE in match["file"]:
        return "", ""
    return f"{short_path(match['file'])}:{match['line']}", match["code"] or ""


def short_path(path: str) -> str:
    """Returns a file's path relative to its library or the working directory, or else its last two parts."""
    library = _LIBRARY.match(path)
    if library is not None:
        return path[library.end() :]
    try:
        return str(Path(path).relative_to(os.getcwd()))
    except ValueError:
        return "/".join(Path(path).parts[-2:])


def ranges(numbers: Iterable[int], most: int = 4) -> str:
    """Writes ascending numbers as ``0-3, 8, 10``, and more than ``most`` ranges as ``0, 8, ... 992``."""
    known = list(numbers)
    runs: list[list[int]] = []
    for number in known:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(runs) > most:
        return f"{known[0]}, {known[1]}, ... {known[-1]}"
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
