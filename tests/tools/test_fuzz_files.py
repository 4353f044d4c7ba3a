"""Hostile files and command lines, in a short form, and the guard that would notice what they do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.fuzz_files.__main__ import run
from tools.fuzz_files.guard import Forbidden, guarded
from tools.fuzz_files.inputs import COMMANDS
from tools.fuzz_files.readers import Readers

KINDS = ("policy", "passes", "manifest", "manifest-bytes", "private", "weights", "index", "command")


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Readers]:
    found = Readers(tmp_path_factory.mktemp("fuzz"))
    found.prepare()
    assert tuple(found.kinds) == KINDS
    yield found


def test_every_input_is_read_or_refused() -> None:
    """In a process of its own: what others have loaded or removed there would count as the inputs' deeds."""
    command = [sys.executable, "-m", "tools.fuzz_files", "--inputs", "240", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert all(kind in done.stdout for kind in KINDS)


def test_the_valid_ones_are_read(readers: Readers) -> None:
    for kind in ("weights", "index"):
        assert run(kind, readers, 40, start=3)[0]["read"]
    for command in COMMANDS:
        assert readers.read("command", [command, "--help"]) == "read"


@pytest.mark.parametrize(
    "deed",
    [
        lambda outside: outside.write_text("x"),
        lambda outside: os.mkdir(outside),
        lambda outside: os.rename(outside.parent, outside.parents[1] / "other"),
        lambda outside: subprocess.run(["true"]),
        lambda outside: os.system("true"),
        lambda outside: os.open(outside, os.O_WRONLY | os.O_CREAT),
    ],
)
def test_the_guard_sees_what_is_forbidden(deed: Callable[[Path], object], tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside" / "file"
    inside.mkdir()
    outside.parent.mkdir()
    with guarded(inside):
        (inside / "file").write_text("x")
    with pytest.raises(Forbidden), guarded(inside):
        deed(outside)
    with guarded(inside):
        pass
