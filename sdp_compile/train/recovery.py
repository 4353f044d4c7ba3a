"""What ``train`` does when owners differ, or gradients become infinite or NaN: it repairs and repeats, or stops."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sdp_compile.checkpoint import background
from sdp_compile.checkpoint.folder import whole_checkpoints
from sdp_compile.errors import DamagedState
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.runtime.optimizer.clipping import clip_grad_norm_
from sdp_compile.train.settings import TrainSettings

Result = TypeVar("Result")


class Recovery:
    """Guards what a run does against damaged states.

    Args:
        settings: The options of the run.
        worker: This worker's model.
        optimizer: Its optimizer.

    Attributes:
        repairs: What was repaired, for the report.
    """

    def __init__(self, settings: TrainSettings, worker: SDPModule, optimizer: torch.optim.Optimizer) -> None:
        self._settings, self._worker, self._optimizer = settings, worker, optimizer
        self.repairs: list[dict[str, Any]] = []
        self._step = 0
        self._norm: Tensor | None = None

    def __call__(self, step: int, run: Callable[[], Result]) -> Result:
        """Returns what ``run`` returns, which changes nothing before it has checked what the workers hold. Collective.

        Args:
            step: The number of the step that it belongs to.
            run: What is done, and after a repair done once more.

        Raises:
            DamagedState: If owners differ, or gradients or values are infinite or NaN, and this was not repaired.
        """
        self._step = step
        try:
            return run()
        except DamagedState as error:
            self._repair(error)
        try:
            return run()
        except DamagedState as error:
            raise self._stopped(str(error)) from None

    def clip(self, model: nn.Module, max_norm: float) -> None:
        """Clips the gradient, which is an error if it is infinite or NaN.

        An accelerator is not waited for: the norm is looked at in the next step. No checkpoint is saved meanwhile,
        because what is saved is checked.
        """
        norm = clip_grad_norm_(model, max_norm)
        known, self._norm = norm if norm.device.type == "cpu" else self._norm, norm
        if known is not None and not bool(known.isfinite()):
            self._norm = None
            raise DamagedState(
                f"The norm of the gradient is {known.item()} in step {self._step}: a loss, a value or a gradient has "
                "become infinite or NaN."
            )

    def _repair(self, error: DamagedState) -> None:
        """Repairs what differs, if that is asked for. Collective."""
        if not self._settings.repair:
            raise self._stopped(f"{error} --repair repairs what two of at least three owners agree on.") from None
        try:
            done = self._worker.repair(self._optimizer)
        except DamagedState as why:
            raise self._stopped(f"{error} This cannot be repaired: {why}") from None
        found = [asdict(one) for one in done.repaired]
        self.repairs.append({"step": self._step, "error": str(error), "repaired": found})
        if self._worker.rank == 0:
            words = "; ".join(map(str, done.repaired)) or "no value or state differs, so the step is repeated"
            print(f"Step {self._step}: {error}\nRepaired: {words}.", file=sys.stderr)

    def _stopped(self, problem: str) -> DamagedState:
        """Returns the error that ends the run and says where to go on from."""
        background.settle(raises=False)
        folder = self._settings.checkpoint
        if folder is None:
            return DamagedState(f"{problem} No checkpoint was kept; --checkpoint DIR keeps some to go on from.")
        there = whole_checkpoints(Path(folder))
        if not there:
            return DamagedState(f"{problem} {folder} has no checkpoint yet.")
        return DamagedState(
            f"{problem} Stopped in step {self._step}. The newest clean checkpoint is {there[-1]}: the same command "
            "with --resume auto goes on from it."
        )
