"""Runs what a study still lacks: first the choice of learning rates, then the runs that are reported."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from threading import Thread
from typing import Any

from sdp_compile.errors import SDPError
from sdp_compile.study.results import append_row, best_peak, read_rows
from sdp_compile.study.spec import Contestant, Run, Study
from sdp_compile.study.tasks import TASKS


class Runner:
    """Runs a study into a file, which it goes on with if it holds some of its runs already.

    Args:
        study: The study.
        path: The file.
        on_row: Called after each run with its row and the number of runs that are left.
    """

    def __init__(self, study: Study, path: Path, on_row: Callable[[dict[str, Any], int], None]) -> None:
        self._study, self._path, self._on_row = study, path, on_row
        self._rows = {row["key"]: row for row in read_rows(path)}

    def all(self, jobs: int) -> None:
        """Runs what is missing, ``jobs`` runs at a time, each on one thread.

        Raises:
            SDPError: If another study writes to the file.
        """
        with _alone(self._path), _pool(jobs) as pool:
            self._rows |= {row["key"]: row for row in read_rows(self._path)}  # what another one has left meanwhile
            self._run(pool, jobs, self._tuning())
            self._run(pool, jobs, self._reported())

    def rows(self) -> list[dict[str, Any]]:
        """Returns the rows of this study that are reported, as far as they are there."""
        return self._there(self._reported())

    def tuning_rows(self) -> list[dict[str, Any]]:
        """Returns the rows of the runs that choose learning rates, as far as they are there."""
        return self._there(self._tuning())

    def missing(self) -> int:
        """Returns the number of runs that are missing."""
        undecided = [one for one in self._study.contestants if self._peak(one) is None]
        later = sum(len(self._study.seeds) * len(one.match) for one in undecided)
        return sum(self._study.key(run) not in self._rows for run in (*self._tuning(), *self._reported())) + later

    def _there(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        found = (self._rows.get(self._study.key(run)) for run in runs)
        return [row for row in found if row is not None]

    def _tuning(self) -> list[Run]:
        """Returns the runs that choose learning rates; none where there is nothing to choose."""
        if len(self._study.learning_rates) == 1:
            return []
        return [run for one in self._study.contestants for run in self._study.runs(one, None)]

    def _reported(self) -> list[Run]:
        chosen = ((one, self._peak(one)) for one in self._study.contestants)
        return [run for one, peak in chosen if peak is not None for run in self._study.runs(one, peak)]

    def _peak(self, contestant: Contestant) -> float | None:
        """Returns the learning rate that a contestant has chosen; None if it has not tried all."""
        if len(self._study.learning_rates) == 1:
            return self._study.learning_rates[0]
        runs = list(self._study.runs(contestant, None))
        tried = self._there(runs)
        return best_peak(tried, TASKS[self._study.task].goal) if len(tried) == len(runs) else None

    def _run(self, pool: Executor, jobs: int, runs: Sequence[Run]) -> None:
        left = [one for one in runs if self._study.key(one) not in self._rows]
        for row in _results(pool, jobs, self._study, left):
            self._rows[row["key"]] = row
            append_row(self._path, row)
            self._on_row(row, self.missing())


def _results(pool: Executor, jobs: int, study: Study, runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Yields the row of each run as it ends."""
    waiting, active = list(reversed(runs)), set[Future[dict[str, Any]]]()
    while waiting or active:
        while waiting and len(active) < jobs:
            active.add(pool.submit(_row, study, waiting.pop()))
        done, active = wait(active, return_when=FIRST_COMPLETED)
        for one in done:
            yield one.result()


def _row(study: Study, one: Run) -> dict[str, Any]:
    from sdp_compile.study.run import run

    return {"key": study.key(one), **run(study, one)}


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Locks a file of results, so that no run is made twice.

    Raises:
        SDPError: If another study has locked it, or it cannot be written.
    """
    try:
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SDPError(f"Another study writes to {path}. Wait for it, or name another file with --out.") from None
    except OSError as error:
        raise SDPError(f"{path} cannot be written: {error.strerror}. Name another file with --out.") from None
    with file:
        yield


@contextmanager
def _pool(jobs: int) -> Iterator[Executor]:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that are started
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_begin) as pool:
            yield pool
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _begin() -> None:
    """Prepares a process for runs, each on one thread. It ends with the study, also if that is killed."""
    parent = parent_process()
    assert parent is not None
    Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    import torch

    torch.set_num_threads(1)


def _end_with(sentinel: int) -> None:
    wait_for([sentinel])
    os._exit(1)
