"""The report page: what was captured, decided and rewritten, as one HTML file to share with a team."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sdp_compile.errors import SDPError
from sdp_compile.report_page.page import report_html

if TYPE_CHECKING:
    from sdp_compile.inspector.subject import Subject


def write_report(subject: Subject, path: str | Path, rank: int = 0, command: str = "") -> int:
    """Writes the page to ``path`` and returns its size in bytes; ``rank`` is the worker whose graph it shows.

    Raises `SDPError` where the file cannot be written.
    """
    data = report_html(subject, rank, command).encode("utf-8")
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise SDPError(f"The report cannot be written to {path}: {error.strerror}.") from None
    return len(data)
