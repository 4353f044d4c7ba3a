"""Trials one after the other, each with its fault, and what is demanded afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdp_compile.checkpoint.folder import whole_checkpoints
from sdp_compile.checkpoint.reading import Checkpoint
from tools.kills.disk import Disk, disk, own_mounts
from tools.kills.job import captured
from tools.kills.processes import Event, Workers
from tools.kills.reference import Reference, reference
from tools.kills.trial import FIRST, KINDS, STEPS, WORKERS, Kind, Trial, drawn
from tools.kills.verdict import assembled, folder_problem, run_problem, step_of
from tools.kills.worker import FULL, READ_ONLY, Orders

_GRACE = 0.3
"""How long a launcher waits before it ends the other workers, in seconds."""


@dataclass
class Campaign:
    """Runs trials.

    Args:
        folder: An empty folder for their files.
        timeout: The limit of the process groups, in seconds.
        patience: By how much the limit of a run is longer than on a machine that does nothing else.
        kinds: What is trained.
    """

    folder: Path
    timeout: float
    patience: float = 1.0
    kinds: Sequence[Kind] = KINDS
    _references: dict[Kind, Reference] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._may_mount = own_mounts()
        self._analysis = captured()

    @property
    def limit(self) -> float:
        """How long a run may take in all, in seconds: a few of its steps may each wait for the process group."""
        return (30 + 5 * self.timeout) * self.patience

    def run(self, seed: int) -> dict[str, Any]:
        """Runs one trial. Returns what happened, with the ``problem`` in words; empty if all is as it must be."""
        begin, used = time.monotonic(), _processor_seconds()
        trial = drawn(seed, self.timeout, self.kinds)
        if trial.kind not in self._references:
            place = self.folder / f"reference-{len(self._references)}"
            self._references[trial.kind] = reference(self._start, trial.kind, place, self.limit)
        row: dict[str, Any] = {
            "seed": seed,
            "kind": str(trial.kind),
            "fault": trial.fault,
            "moment": trial.moment,
            "redundancy": trial.redundancy,
            "victims": list(trial.victims),
        }
        with disk(self.folder / f"trial-{seed}", self._may_mount) as place:
            row |= _Run(self, trial, self._references[trial.kind], place).all()
        cpu = round(_processor_seconds() - used, 1)
        return {**row, "seconds": round(time.monotonic() - begin, 1), "cpu": cpu}

    def _start(self, orders: Orders) -> Workers:
        return Workers(orders, self.timeout, self._analysis)


class _Run:
    def __init__(self, campaign: Campaign, trial: Trial, expected: Reference, place: Disk) -> None:
        self._campaign, self._trial, self._expected, self._disk = campaign, trial, expected, place
        self._folder = place.folder / "checkpoints"
        self._deadline = time.monotonic() + campaign.limit
        self._before: dict[int, int] = {}
        self._hit = "nothing"

    def all(self) -> dict[str, Any]:
        """Trains with the fault, looks at the folder, and goes on. Returns what happened."""
        start = None
        if self._trial.repeats:
            shutil.copytree(self._expected.folder, self._folder)
            start = self._folder / f"step-{FIRST:08d}"
        workers = self._campaign._start(self._orders(start))
        self._strike(workers)
        hanging = workers.ended(self._deadline)
        stacks = workers.stacks(hanging)
        left = workers.end()
        self._disk.free()
        happened = {
            "hit": self._hit,
            "errors": sorted(
                {event["text"][:100] for event in workers.events if event["event"] in ("error", "refused")}
            ),
            "codes": [workers.codes().get(rank) for rank in range(WORKERS)],
            "refused": sum(event["event"] == "refused" for event in workers.events),
        }
        problem = (
            (f"workers {hanging} did not end within {self._campaign.limit:.0f} s:\n{stacks}" if hanging else "")
            or left
            or run_problem(workers.events, workers.codes(), self._expected)
            or folder_problem(self._folder, self._before, self._trial.keep, self._expected, self._disk.folder)
        )
        if problem:
            return {**happened, "result": "wrong", "problem": problem, "events": _shortened(workers.events)}
        result, problem = self._go_on()
        return {**happened, "result": result, "problem": problem}

    def _orders(self, start: Path | None) -> Orders:
        trial = self._trial
        injected = READ_ONLY if trial.fault == "read-only folder" else 0
        if trial.fault == "full disk" and not self._disk.is_mounted:
            injected = FULL
        return Orders(
            trial.kind,
            self._folder,
            start,
            trial.saves,
            {"redundancy": trial.redundancy, "keep": trial.keep},
            operation=(trial.at, trial.by) if trial.moment == "operation" or injected else None,
            error=injected,
            goes_on=trial.fault in ("full disk", "read-only folder"),
        )

    def _strike(self, workers: Workers) -> None:
        """Waits for the moment and does what the trial wants, if the moment comes."""
        trial = self._trial
        wanted = {"training": "step", "save": "save", "operation": "operation"}[trial.moment]
        if trial.moment == "training" and trial.at == 0:
            wanted = "ready"
        if trial.fault == "read-only folder" or (trial.fault == "full disk" and not self._disk.is_mounted):
            wanted = "fault"
        left = trial.at if wanted == "save" else trial.at - 1 if wanted == "step" else 0

        def is_moment(event: Event) -> bool:
            nonlocal left
            if event["event"] != wanted or event["rank"] != trial.by:
                return False
            left -= 1
            return left < 0

        found = workers.follow(is_moment, self._deadline)
        if found is None:
            return
        if wanted == "operation":
            workers.wait_stopped(trial.by, self._deadline)
        elif trial.moment != "operation":
            seconds = self._expected.save_seconds if trial.moment == "save" else self._expected.step_seconds
            workers.follow(lambda _: False, time.monotonic() + trial.share * seconds)
        if len(workers.codes()) == WORKERS:  # meanwhile
            return
        self._before = orders_of(self._folder)
        self._hit = "save" if is_saving(workers.events) else "training"
        self._do(workers)
        if wanted == "operation":
            workers.send([trial.by], signal.SIGCONT)
        if trial.fault in ("kill", "stop and kill") and not trial.waits:
            workers.follow(lambda _: False, time.monotonic() + _GRACE)
            workers.send(range(WORKERS), signal.SIGKILL)

    def _do(self, workers: Workers) -> None:
        trial = self._trial
        if trial.fault == "kill":
            workers.send(trial.victims, signal.SIGKILL)
        elif trial.fault in ("stop", "stop and kill"):
            workers.send(trial.victims, signal.SIGSTOP)
            if trial.moment == "operation" and trial.by not in trial.victims:
                workers.send([trial.by], signal.SIGCONT)
            workers.follow(lambda _: False, time.monotonic() + trial.seconds)
            end = signal.SIGCONT if trial.fault == "stop" else signal.SIGKILL
            workers.send(trial.victims, end)
        elif trial.fault == "full disk" and self._disk.is_mounted:
            self._disk.fill(int(trial.leaves * self._expected.nbytes))
            if trial.moment == "operation":
                workers.send([trial.by], signal.SIGCONT)
            workers.follow(lambda _: False, time.monotonic() + trial.seconds)
            self._disk.free()

    def _go_on(self) -> tuple[str, str]:
        """Goes on from the newest checkpoint, or begins, and assembles one of which files are lost."""
        trial = self._trial
        there = whole_checkpoints(self._folder)
        result = "began again"
        if there:
            lost = trial.lost if Checkpoint(there[-1]).manifest.redundancy == "owners" else ()
            problem = assembled(there[-1], lost, self._expected, self._disk.folder / "lost")
            if problem:
                return "wrong", problem
            result = "assembled and resumed" if lost else "resumed"
        orders = Orders(
            trial.kind,
            self._folder,
            self._folder if there else None,
            {STEPS - 1: False} | {STEPS: False},
            {"redundancy": trial.redundancy, "keep": trial.keep},
        )
        workers = self._campaign._start(orders)
        hanging = workers.ended(time.monotonic() + self._campaign.limit)
        stacks = workers.stacks(hanging)
        problem = workers.end()
        if hanging:
            problem = f"workers {hanging} did not end within {self._campaign.limit:.0f} s:\n{stacks}"
        problem = problem or run_problem(workers.events, workers.codes(), self._expected, must_end=True)
        leftovers = [path.name for path in self._folder.iterdir() if path.name[:5] not in (".lock", "step-")]
        if not problem and leftovers:
            problem = f"after the next save the folder holds {leftovers}"
        if not problem:
            problem = folder_problem(self._folder, {}, trial.keep, self._expected, self._disk.folder)
        return (result, "") if not problem else ("wrong", f"went on: {problem}")


def orders_of(folder: Path) -> dict[int, int]:
    """Returns the order of the whole checkpoints of a folder by step."""
    found = {}
    for path in whole_checkpoints(folder):
        with suppress(FileNotFoundError):  # it was just removed for a newer one
            found[step_of(path)] = int((path / "order").read_text())
    return found


def _processor_seconds() -> float:
    """Returns the processor time of this process and the workers that have ended."""
    return sum(os.times()[:4])


def is_saving(events: list[Event]) -> bool:
    """Whether a save is in progress after these events, perhaps in the background."""
    last = {event["rank"]: event for event in events}
    return any(
        event["event"] in ("save", "operation", "fault") or event.get("asynchronous") or event.get("writing")
        for event in last.values()
    )


def _shortened(events: list[Event]) -> list[Any]:
    return [{key: value for key, value in event.items() if key != "time"} for event in events][-24:]
