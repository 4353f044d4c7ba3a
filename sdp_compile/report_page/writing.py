"""Writes the report page to a file."""

from __future__ import annotations

from pathlib import Path

from sdp_compile.errors import SDPError
from sdp_compile.inspector.subject import Subject
from sdp_compile.passes import Pass
from sdp_compile.policies import Schedule
from sdp_compile.report_page.page import report_html


def write_report(
    subject: Subject,
    path: str | Path,
    rank: int = 0,
    command: str = "",
    passes: tuple[Pass, ...] = (),
    description: str = "",
    schedule: Schedule | None = None,
) -> int:
    """Writes the report page of a plan.

    Args:
        subject: The model and its plan.
        path: The HTML file to write.
        rank: The worker whose graph is shown.
        command: The command line that made the page; shown if not empty.
        passes: The passes to run; default: the pipeline of the plan.
        description: Says which model this is, such as its configuration; shown if not empty.
        schedule: The schedule that the plan is of; its phases are shown, too.

    Returns:
        The size of the page in bytes.

    Raises:
        SDPError: If the file cannot be written.
    """
    data = report_html(subject, rank, command, passes, description, schedule).encode("utf-8")
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise SDPError(f"Cannot write the report to {path}: {error.strerror}.") from None
    return len(data)
