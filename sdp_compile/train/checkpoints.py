"""Checkpoints of ``train``: every so many steps, when a scheduler gives notice, and to go on from."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from sdp_compile.checkpoint.coverage import check_states, shortened
from sdp_compile.checkpoint.folder import name_of, whole_checkpoints
from sdp_compile.checkpoint.gathering import gather_checkpoint
from sdp_compile.checkpoint.load import load_checkpoint
from sdp_compile.checkpoint.model import model_of
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.checkpoint.save import save_checkpoint
from sdp_compile.checkpoint.team import Team
from sdp_compile.errors import SDPError
from sdp_compile.processes import NOTICES, STOPPED
from sdp_compile.runtime.comm.agreement import maxima
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.train.loop import Windows
from sdp_compile.train.settings import TrainSettings


class Stopped(SystemExit):
    """The run was asked to stop, and has saved a checkpoint."""

    def __init__(self, place: Path) -> None:
        super().__init__(STOPPED)
        self.place = place


class Checkpoints:
    """Saves and restores one run.

    Args:
        settings: The options of the run.
        worker: This worker's model.
        optimizer: Its optimizer.
        windows: This worker's source of data.
        note: Shows a text to the user.

    Attributes:
        step: The number of steps that were done before this process began.
        losses: The mean losses of these steps.
        before: The validation loss before the first of them.
    """

    def __init__(
        self,
        settings: TrainSettings,
        worker: SDPModule,
        optimizer: torch.optim.Optimizer,
        windows: Windows,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._note = note
        self._settings, self._worker, self._optimizer, self._windows = settings, worker, optimizer, windows
        self.step, self.losses, self.before = 0, list[float](), float("nan")
        self._asked = False
        if settings.checkpoint is not None:
            for number in NOTICES:
                signal.signal(number, self._notice)

    def resume(self) -> bool:
        """Loads the checkpoint that the settings name; False if the run begins. Collective."""
        path = self._source()
        if path is None:
            return False
        restored = load_checkpoint(
            path,
            self._worker,
            self._optimizer,
            reset_lost_optimizer_state=self._settings.reset_lost_optimizer_state,
        )
        self.step, self._windows.done = restored.step, restored.samples or 0
        try:
            self.losses = [float(loss) for loss in restored.extra["losses"]]
            self.before = float(restored.extra["before"])
        except (KeyError, TypeError, ValueError) as error:
            raise SDPError(f"{restored.path} was not saved by `sdp-compile train`. Resume from another one.") from error
        if self._worker.rank == 0:
            print(f"Goes on after step {self.step}, from {restored.path}.", file=sys.stderr)
        if restored.reset and self._worker.rank == 0:
            print(f"Begins without the optimizer state of {shortened(restored.reset)}.", file=sys.stderr)
        return True

    def after_step(self, step: int, losses: Callable[[], Sequence[float]]) -> None:
        """Saves after a step if it is time, or if any worker was given notice. Collective.

        Args:
            step: The number of steps done.
            losses: Returns the mean losses of this process's steps. Collective.

        Raises:
            Stopped: After saving, if any worker was given notice.
        """
        settings = self._settings
        if settings.checkpoint is None:
            return
        groups = None if self._worker.peers is None else self._worker.peers.groups
        asked = self._asked if groups is None else bool(maxima([float(self._asked)], "a notice to stop", groups)[0])
        if not asked and step % settings.every and step < settings.steps:
            return
        options: dict[str, Any] = {
            "samples": self._windows.done,
            "extra": {"losses": [*self.losses, *losses()], "before": self.before},
            "keep": settings.keep,
            "storage": "local" if settings.local_checkpoint else "shared",
            "asynchronous": settings.asynchronous and not asked and step < settings.steps,
        }
        if not options["asynchronous"]:
            options["on_progress"] = lambda done, total: self._note(f"saving {done / max(total, 1):.0%}")
        save_checkpoint(settings.checkpoint, self._worker, self._optimizer, step=step, **options)
        if asked and step < settings.steps:
            raise Stopped(Path(settings.checkpoint, name_of(step)))

    def _source(self) -> Path | None:
        """Returns where to go on from, as worker 0 sees it."""
        settings = self._settings
        if settings.resume is not None and settings.resume != "auto":
            return Path(settings.resume)
        if settings.local_checkpoint and settings.checkpoint is not None:
            return self._gathered(Path(settings.checkpoint))
        found, problem = "", ""
        if self._worker.rank == 0 and settings.checkpoint is not None:
            try:
                found = self._chosen(Path(settings.checkpoint))
            except SDPError as error:
                problem = str(error)
        if self._worker.peers is not None:
            found, problem = self._worker.peers.groups.gather_json([found, problem])[0]
        if problem:
            raise SDPError(problem)
        return Path(found) if found else None

    def _gathered(self, folder: Path) -> Path | None:
        """Returns the newest checkpoint that the disks of all nodes cover, completed on each. Collective."""
        model, what = model_of(self._worker, "train"), "the resumption of training"
        team, reset = Team(model.peers, what), self._settings.reset_lost_optimizer_state
        if self._settings.resume is None:
            there = whole_checkpoints(folder)
            for newest in team.gather(str(there[-1]) if there else ""):
                if newest:
                    raise _not_asked(folder, Path(newest))
            return None
        return gather_checkpoint(folder, model, team, reset, "--reset-lost-optimizer-state")

    def _chosen(self, folder: Path) -> str:
        """Returns the newest checkpoint in a folder of which nothing is lost; empty if there is none."""
        there = whole_checkpoints(folder)
        if self._settings.resume is None:
            if there:
                raise _not_asked(folder, there[-1])
            return ""
        problems = []
        for path in reversed(there):
            try:
                checkpoint = Checkpoint(path)
                check_states(checkpoint, self._settings.reset_lost_optimizer_state, "--reset-lost-optimizer-state")
                if not self._settings.reset_lost_optimizer_state:
                    checkpoint.verify()
            except SDPError as error:
                problems.append(f"{path.name}: {error}")
                print(f"Leaves out a damaged checkpoint. {problems[-1]}", file=sys.stderr)
            else:
                return str(path)
        if problems:
            raise SDPError(f"No checkpoint in {folder} is intact. {problems[0]}")
        return ""

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._asked = True


def _not_asked(folder: Path, newest: Path) -> SDPError:
    return SDPError(
        f"{folder} has checkpoints of an earlier run, the newest of step {newest.name[-8:]}. Pass --resume auto to go "
        "on from it, or choose another folder."
    )
