"""A pytest plugin that writes each result to a JSON file as it is made."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch


class Recorder:
    """Records the tests of one run.

    Args:
        path: The JSON file.
        device: The device that the tests use; by default this machine's accelerator.
    """

    def __init__(self, path: Path, device: str | None) -> None:
        self._path = path
        self._record: dict[str, Any] = {**_circumstances(device), "tests": []}
        self._write()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Writes a test's outcome after its call, or before if it is skipped or its set-up fails."""
        if report.when == "call" or report.outcome != "passed":
            self._record["tests"].append(
                {
                    "name": report.nodeid,
                    "outcome": report.outcome,
                    "seconds": round(report.duration, 2),
                    "detail": _detail(report),
                    **dict(report.user_properties),
                }
            )
            self._write()

    def _write(self) -> None:
        temporary = self._path.with_suffix(".part")
        temporary.write_text(json.dumps(self._record, indent=1) + "\n")
        temporary.replace(self._path)


def _detail(report: pytest.TestReport) -> str:
    if report.outcome == "skipped" and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    return "" if report.outcome == "passed" else str(report.longreprtext)[-6000:]


def _circumstances(device: str | None) -> dict[str, Any]:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    used = torch.device(device) if device else accelerator or torch.device("cpu")
    name = torch.cuda.get_device_name(used) if used.type == "cuda" else used.type
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m tools.accelerator", *(Path(word).name for word in sys.argv[1:])]),
        "device": name,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda if used.type == "cuda" else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if used.type == "cuda" else None,
    }
