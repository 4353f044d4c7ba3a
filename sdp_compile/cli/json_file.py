"""``--json PATH|-``: what a command has found, as a file or on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdp_compile.errors import SDPError


def write_json(path: str | None, result: Mapping[str, Any]) -> None:
    """Writes to a file, to standard output for "-", nowhere for None. SDPError where it cannot be written."""
    if path is None:
        return
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        Path(path).write_text(text)
    except OSError as error:
        raise SDPError(f"--json {path}: cannot write there ({error.strerror}).") from None
