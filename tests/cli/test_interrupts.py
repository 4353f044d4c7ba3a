"""Ctrl-C is one line and exit code 130, also while something is being imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomllib

from tests.cli.interrupting import ROOT, commands, interrupted


def test_ctrl_c_while_the_command_line_is_imported(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt")
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["sdp-compile"]
    module, _, function = script.partition(":")
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; from {module} import {function}; sys.exit({function}())", "--version"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "Stopped.\n")


@pytest.mark.timeout(150)
def test_ctrl_c_while_the_server_of_workers_imports_torch(tmp_path: Path) -> None:
    started = float("inf")

    def is_importing(process: int) -> bool:
        nonlocal started
        if started == float("inf") and any(b"forkserver" in command for command in commands(process).values()):
            started = time.monotonic()
        return time.monotonic() > started + 0.5

    bench = [sys.executable, "-m", "sdp_compile.cli.main", "bench", "--workers", "2", "--no-compile"]
    interrupted([*bench, "--variants", "ddp"], is_importing, {"TMPDIR": str(tmp_path)})
