"""``on_progress``: what a progress bar shows while a checkpoint is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.training import Run
from tests.distributed import run_workers

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")


def saves(rank: int, folder: Path) -> list[list[tuple[int, int]]]:
    run, told = Run("transformer", "neuron", rank, False), list[list[tuple[int, int]]]()
    run.train(1)
    for step, options in enumerate(({}, {"asynchronous": True}, {"storage": "local"}, {"redundancy": "owners"}), 1):
        told.append([])
        place = folder / str(rank) if "storage" in options else folder / "shared"
        place.mkdir(parents=True, exist_ok=True)
        one: Any = options
        saved = run.save(place, step, on_progress=lambda done, total: told[-1].append((done, total)), **one)
        if "asynchronous" in options:
            saved.wait()
    return told


def test_that_progress_rises_to_all_bytes(tmp_path: Path) -> None:
    by_worker = run_workers(saves, 2, tmp_path)
    for told in by_worker:
        for calls in told:
            done, totals = [one for one, _ in calls], {total for _, total in calls}
            assert len(calls) > 5 and done == sorted(set(done)) and totals == {done[-1]}
    each, every_owner = (sum(told[kind][-1][1] for told in by_worker) for kind in (0, 3))
    assert each < every_owner
