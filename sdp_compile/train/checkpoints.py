"""Checkpoints of ``train``: every so many steps, when a scheduler gives notice, and to go on from."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from types import FrameType

import torch

from sdp_compile.checkpoint.folder import whole_checkpoints
from sdp_compile.checkpoint.load import load_checkpoint
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.checkpoint.save import save_checkpoint
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

    Attributes:
        step: The number of steps that were done before this process began.
        losses: The mean losses of these steps.
        before: The validation loss before the first of them.
    """

    def __init__(
        self, settings: TrainSettings, worker: SDPModule, optimizer: torch.optim.Optimizer, windows: Windows
    ) -> None:
        self._settings, self._worker, self._optimizer, self._windows = settings, worker, optimizer, windows
        self._samples = settings.batch * worker.workers
        self.step, self.losses, self.before = 0, list[float](), float("nan")
        self._seen, self._asked = 0, False
        if settings.checkpoint is not None:
            for number in NOTICES:
                signal.signal(number, self._notice)

    def resume(self) -> bool:
        """Loads the checkpoint that the settings name; False if the run begins. Collective."""
        path = self._source()
        if path is None:
            return False
        same = Checkpoint(path).manifest.workers == self._worker.workers
        restored = load_checkpoint(path, self._worker, self._optimizer, loader=self._windows if same else None)
        self.step, self._seen = restored.step, restored.samples or 0
        try:
            self.losses = [float(loss) for loss in restored.extra["losses"]]
            self.before = float(restored.extra["before"])
        except (KeyError, TypeError, ValueError) as error:
            raise SDPError(f"{restored.path} was not saved by `sdp-compile train`. Resume from another one.") from error
        if not same:  # windows are drawn at random: fresh ones repeat none of those that were drawn
            self._windows.generator.manual_seed(self._seed())
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
        place = save_checkpoint(
            settings.checkpoint,
            self._worker,
            self._optimizer,
            step=step,
            loader=self._windows,
            samples=self._seen + (step - self.step) * self._samples,
            extra={"losses": [*self.losses, *losses()], "before": self.before},
            keep=settings.keep,
        )
        if asked and step < settings.steps:
            raise Stopped(place)

    def _seed(self) -> int:
        text = f"{self._settings.seed} {self._worker.rank} {self.step}"
        return int.from_bytes(sha256(text.encode()).digest()[:7], "little")

    def _source(self) -> Path | None:
        """Returns where to go on from, as worker 0 sees it."""
        settings = self._settings
        if settings.resume is None:
            return None
        if settings.resume != "auto":
            return Path(settings.resume)
        found = [str(path) for path in whole_checkpoints(Path(settings.checkpoint or ""))[-1:]]
        if self._worker.peers is not None:
            found = self._worker.peers.groups.gather_json(found)[0]
        return Path(found[0]) if found else None

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
