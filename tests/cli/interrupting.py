"""Ctrl-C as a terminal sends it, and what must be left of a command then."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).resolve().parents[2]


def interrupted(
    command: Sequence[str],
    is_ready: Callable[[int], bool],
    environment: Mapping[str, str] = MappingProxyType({}),
    limit: float = 60,
) -> None:
    """Sends Ctrl-C to a command and its processes; it must end with exit code 130, one line and no process.

    Args:
        command: The command.
        is_ready: Whether the signal can be sent, given the command's process id.
        environment: Variables besides those of the tests.
        limit: The seconds within which everything has ended.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    begun: set[int] = set()
    try:
        while not is_ready(process.pid):
            assert process.poll() is None, "it has ended by itself"
            time.sleep(0.02)
        begun.update(commands(process.pid))
        os.killpg(process.pid, signal.SIGINT)
        deadline = time.monotonic() + limit
        _, words = process.communicate(timeout=limit)
        assert process.returncode == 130, words
        assert "Stopped" in words and "Traceback" not in words
        while left := begun & _living().keys():
            assert time.monotonic() < deadline, f"processes {left} are left over"
            time.sleep(0.1)
    finally:
        begun.update(commands(process.pid))
        for number in begun & _living().keys():
            os.kill(number, signal.SIGKILL)
        process.wait()


def commands(process: int) -> dict[int, bytes]:
    """The command lines of a live process and of all that it has begun, by process id."""
    living, found = _living(), dict[int, bytes]()
    wanted = {process}
    while new := {one for one in living.keys() - found if one in wanted or living[one][0] in wanted}:
        found.update((number, living[number][1]) for number in new)
        wanted |= new
    return found


def _living() -> dict[int, tuple[int, bytes]]:
    """The parent and the command line of each live process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if state != "Z":
            found[int(folder.name)] = int(parent), command
    return found
