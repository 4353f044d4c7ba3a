"""Ctrl-C is one line and exit code 130, also while something is being imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tomllib

ROOT = Path(__file__).resolve().parents[2]


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
    process = subprocess.Popen(
        [sys.executable, "-m", "sdp_compile.cli.main", "bench", "--workers", "2", "--no-compile", "--variants", "ddp"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    while not any(b"forkserver" in command for command in _commands(process.pid)):
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130, words
    assert "Stopped" in words and "Traceback" not in words
    deadline = time.monotonic() + 60
    while _commands(process.pid):
        assert time.monotonic() < deadline, "processes are left over"
        time.sleep(0.1)


def _commands(leader: int) -> list[bytes]:
    """The command lines of the live processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if int(session) == leader and state != "Z":
            found.append(command)
    return found
