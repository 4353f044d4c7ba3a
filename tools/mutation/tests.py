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
from contextlib import AbstractContextManager
from itertools import zip_longest
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any, Protocol

import pytest

from tools.mutation.coverage import EXECUTED, with_record

Result = dict[str, Any]
EVERY_LINE = "*"
"""Stands for all lines in the record of a test that fails while lines are recorded."""


class Trial(Protocol):
    """One mutant, as it is tried."""

    durations: Mapping[str, float]
    """Seconds of each test to run; one that takes ten times as long, and ten seconds, has failed."""

    def in_place(self) -> AbstractContextManager[None]:
        """Breaks the file, for as long as the context lasts."""

    def install(self) -> None:
        """Breaks the functions of this process."""

    def report(self, found: Result) -> None:
        """Keeps the test that failed."""


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
    """Runs all tests; returns how long each takes, which lines of ``sources`` it executes, and what is imported."""
    recorder = _Recorder(journal)
    setattr(builtins, EXECUTED, recorder.executed)
    originals = {root / source: (root / source).read_bytes() for source in sources}
    try:
        for file, text in originals.items():
            file.write_text(with_record(str(file.relative_to(root)), text))
        _start_fork_server(root, tests)
        _pytest(root, tests, recorder)
    finally:
        for file, text in originals.items():
            file.write_bytes(text)
    foreign = [
        name
        for name, module in sys.modules.items()
        if not str(getattr(module, "__file__", None) or root).startswith(str(root))
    ]
    found = {"durations": recorder.durations, "lines": recorder.lines}
    return {**found, "imported": recorder.imported, "modules": foreign}


def first_failures(root: Path, tests: Sequence[str], trials: Sequence[Trial], log: Path, budget: float) -> Result:
    """Collects tests once; for each trial, a fork runs them until one fails.

    Args:
        root: Copy of the project.
        tests: Files and folders of the tests.
        trials: What to break, and which tests to run then.
        log: File for all that the forks print.
        budget: Seconds after which a fork begins no further test.
    """
    trying = _Trying(root, trials, log, budget)
    _pytest(root, tests, trying)
    if trying.failed and not trying.done:  # nothing was collected
        for trial in trials:
            trial.report({"killed_by": f"{trying.failed} (import)"})
    return {}


def _pytest(root: Path, tests: Sequence[str], plugin: object) -> None:
    pytest.main(["-q", "-s", "-p", "no:cacheprovider", *tests], [plugin])


def python_files(root: Path, place: str) -> list[Path]:
    """Returns the Python files of a folder, or the file itself."""
    path = root / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def _start_fork_server(root: Path, tests: Sequence[str]) -> None:
    """Makes the fork server of multiprocessing a fork of this process, which has imported torch already."""
    if not any(b"run_workers" in file.read_bytes() for test in tests for file in python_files(root, test)):
        return
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
        self.imported: list[str] = []

    def pytest_collection_finish(self) -> None:
        self.imported = self._read()

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
        failed = self.lines.get(item.nodeid, [])
        self.lines[item.nodeid] = failed or self._read()
        return result

    def _read(self) -> list[str]:
        return sorted(set(os.pread(self.journal, os.fstat(self.journal).st_size, 0).decode().splitlines()))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.lines[report.nodeid] = [EVERY_LINE]


class _Trying:
    """A pytest plugin that runs, for each trial in a fork of its own, tests in the order of their durations."""

    def __init__(self, root: Path, trials: Sequence[Trial], log: Path, budget: float) -> None:
        self.root, self.trials, self.log, self.budget = root, trials, log, budget
        self.failed: str | None = None
        self.done = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_runtestloop(self, session: pytest.Session) -> object:
        for trial in () if self.failed else self.trials:
            items = [item for item in session.items if item.nodeid in trial.durations]
            items.sort(key=lambda item: trial.durations[item.nodeid])
            limit = self.budget + 10 * max(trial.durations.values(), default=0) + 60
            with trial.in_place():
                found = in_fork(self.root, self.log, limit, lambda: self._run(session, trial, items))  # noqa: B023
            trial.report(found or {"killed_by": "no result: the process was ended"})
        self.done = not self.failed
        return True

    def _run(self, session: pytest.Session, trial: Trial, items: list[pytest.Item]) -> Result:
        deadline, count = time.monotonic() + self.budget, 0
        trial.install()
        _start_fork_server(self.root, sorted({item.nodeid.partition("::")[0] for item in items}))
        for item, following in zip_longest(items, items[1:]):
            item.add_marker(pytest.mark.timeout(10 * trial.durations[item.nodeid] + 10), append=False)
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            count += 1
            if self.failed or time.monotonic() > deadline:
                break
        return {"killed_by": self.failed, "tests_run": count, "tests": len(items)}
