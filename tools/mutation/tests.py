"""Runs selected tests in a forked process: with a record of the lines that each executes, or until one fails."""

from __future__ import annotations

import builtins
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

import pytest

from tools.mutation.coverage import EXECUTED, with_record

Result = dict[str, Any]
EVERY_LINE = "*"
"""Stands for all lines in the record of a test that fails while lines are recorded."""


def in_fork(root: Path, log: Path, limit: float, job: Callable[[], Result]) -> Result | None:
    """Returns the result of ``job`` in a fork of this process that works in ``root``.

    Args:
        root: Copy of the project; the first place from which the fork imports.
        log: File for all that the fork prints.
        limit: Seconds after which the fork is killed, with all processes that it started.
        job: Returns what JSON can hold.

    Returns:
        None where the fork ended without a result or did not end in time.
    """
    answer = log.with_suffix(".result")
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(root)
            sys.path[0] = os.environ["PYTHONPATH"] = str(root)
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            sys.dont_write_bytecode = True
            answer.write_text(json.dumps(job()))
        finally:
            os._exit(0)
    deadline = time.monotonic() + limit
    try:
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    return json.loads(answer.read_text()) if answer.exists() else None


def record(root: Path, sources: Collection[str], tests: Sequence[str], journal: Path) -> Result:
    """Runs all tests; returns their durations, the lines of ``sources`` that each executes, and imported modules."""
    recorder = _Recorder(journal)
    setattr(builtins, EXECUTED, recorder.executed)
    originals = {root / source: (root / source).read_bytes() for source in sources}
    try:
        for file, text in originals.items():
            file.write_text(with_record(str(file.relative_to(root)), text))
        _pytest(root, tests, recorder)
    finally:
        for file, text in originals.items():
            file.write_bytes(text)
    foreign = [
        name
        for name, module in sys.modules.items()
        if not str(getattr(module, "__file__", None) or root).startswith(str(root))
    ]
    return {"durations": recorder.durations, "lines": recorder.lines, "modules": foreign}


def first_failure(root: Path, durations: Mapping[str, float], budget: float) -> Result:
    """Runs the tests of ``durations``, the fastest first, until one fails.

    Args:
        root: Copy of the project.
        durations: Seconds that each test takes; one that takes ten times as long, and half a minute, has failed.
        budget: Seconds after which no further test is begun.
    """
    selection = _Selection(durations, budget)
    _pytest(root, sorted({name.partition("::")[0] for name in durations}), selection)
    return {"killed_by": selection.failed, "tests_run": selection.count, "tests": len(durations)}


def _pytest(root: Path, tests: Sequence[str], plugin: object) -> None:
    if any(b"run_workers" in file.read_bytes() for test in tests for file in python_files(root, test)):
        _start_fork_server()
    pytest.main(["-q", "-x" if isinstance(plugin, _Selection) else "-q", "-p", "no:cacheprovider", *tests], [plugin])


def python_files(root: Path, place: str) -> list[Path]:
    """Returns the Python files of a folder, or the file itself."""
    path = root / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def _start_fork_server() -> None:
    """Makes the fork server of multiprocessing a fork of this process, which has imported torch already."""
    spawn = util.spawnv_passfds

    def fork(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        if args[-2] != "-c":
            return spawn(path, args, passfds)
        process = os.fork()
        if process == 0:
            try:
                exec(args[-1], {})
            finally:
                os._exit(1)
        return process

    util.spawnv_passfds = fork
    multiprocessing.get_context("forkserver").set_forkserver_preload(["tests.preload"])
    forkserver.ensure_running()


class _Recorder:
    """A pytest plugin that notes the executed lines; worker processes inherit it, and report through one journal."""

    def __init__(self, journal: Path) -> None:
        self.journal = os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.seen: set[str] = set()
        self.durations: dict[str, float] = {}
        self.lines: dict[str, list[str]] = {}

    def executed(self, place: str) -> None:
        if place not in self.seen:
            self.seen.add(place)
            os.write(self.journal, f"{place}\n".encode())

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.seen.clear()
        os.ftruncate(self.journal, 0)
        start = time.monotonic()
        result = yield
        self.durations[item.nodeid] = time.monotonic() - start
        text = os.pread(self.journal, os.fstat(self.journal).st_size, 0).decode()
        failed = self.lines.get(item.nodeid, [])
        self.lines[item.nodeid] = failed or sorted(set(text.splitlines()))
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.lines[report.nodeid] = [EVERY_LINE]


class _Selection:
    """A pytest plugin that runs the given tests in the order of their durations."""

    def __init__(self, durations: Mapping[str, float], budget: float) -> None:
        self.durations, self.deadline = durations, time.monotonic() + budget
        self.failed: str | None = None
        self.count = 0

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or f"{report.nodeid} (import)"

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (item for item in items if item.nodeid in self.durations), key=lambda item: self.durations[item.nodeid]
        )
        for item in items:
            item.add_marker(pytest.mark.timeout(10 * self.durations[item.nodeid] + 30), append=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        result = yield
        self.count += 1
        if time.monotonic() > self.deadline:
            item.session.shouldstop = "no time is left for this mutant"
        return result
