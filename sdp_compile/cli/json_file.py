"""``--json PATH|-``: the results of a command, as a file or on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdp_compile.errors import SDPError


def write_json(path: str | None, result: Mapping[str, Any]) -> None:
    """Writes ``result`` to a file, or to standard output for "-". Raises `SDPError` where it cannot be written."""
    write_text(path, json.dumps(result, indent=2, allow_nan=False) + "\n")


def write_text(path: str | None, text: str, option: str = "--json") -> None:
    """Writes ``text`` where ``option`` says; see `write_json`."""
    if path is None:
        return
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SDPError(f"{option} {path}: cannot write there ({error.strerror}).") from None
