"""What an uninterrupted run is after each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median

from tools.kills.processes import Workers
from tools.kills.trial import FIRST, STEPS, WORKERS, Kind
from tools.kills.worker import Orders


@dataclass(frozen=True)
class Reference:
    """An uninterrupted run.

    Attributes:
        digests: That of each worker's state, by step and rank.
        full: That of the full model, by step.
        folder: A folder with checkpoints of several of its steps.
        step_seconds: How long a step takes.
        save_seconds: How long a save takes.
    """

    digests: dict[tuple[int, int], str]
    full: dict[int, str]
    folder: Path
    step_seconds: float
    save_seconds: float

    @property
    def nbytes(self) -> int:
        """The size of one checkpoint in bytes."""
        place = next(self.folder.glob("step-*"))
        return sum(path.stat().st_size for path in place.iterdir())


def reference(start: Callable[[Orders], Workers], kind: Kind, folder: Path, limit: float) -> Reference:
    """Trains without a fault, and saves a few checkpoints."""
    saves = dict.fromkeys(range(FIRST, STEPS, 2), False)
    workers = start(Orders(kind, folder, None, saves, {"redundancy": "none", "keep": None}, told=True))
    hanging = workers.ended(time.monotonic() + 4 * limit)
    problem = workers.end()
    events = workers.events
    failed = [event for event in events if event["event"] == "error"]
    if hanging or problem or failed or set(workers.codes().values()) != {0}:
        raise RuntimeError(f"The reference of {kind} cannot be trained: {hanging or problem or failed}")
    steps = [event for event in events if event["event"] == "step"]
    mine = [event for event in events if event["rank"] == 0]
    spans = {
        name: median(after["time"] - before["time"] for before, after in pairwise(mine) if after["event"] == name)
        for name in ("step", "saved")
    }
    digests = {(event["step"], event["rank"]): event["digest"] for event in steps}
    digests |= {(0, event["rank"]): event["digest"] for event in events if event["event"] == "ready"}
    if len(digests) != (STEPS + 1) * WORKERS:
        raise RuntimeError(f"The reference of {kind} has {len(digests)} states.")
    full = {event["step"]: event["full"] for event in steps if event["rank"] == 0}
    return Reference(digests, full, folder, spans["step"], spans["saved"])
