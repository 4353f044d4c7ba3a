"""The phases of a run: changes of plan when the schedule asks for them, and what each phase held."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from sdp_compile.policies import Schedule
from sdp_compile.runtime.module.sdp_module import SDPModule
from sdp_compile.train.memory import TrainingState, measure


class Phases:
    """Follows the schedule of a run.

    Args:
        schedule: The schedule.
        worker: This worker's model.
        optimizer: Its optimizer.

    Attributes:
        states: What this worker held in each phase, where it held most; phases before a resumption are missing.
    """

    def __init__(self, schedule: Schedule, worker: SDPModule, optimizer: torch.optim.Optimizer) -> None:
        self._schedule, self._worker, self._optimizer = schedule, worker, optimizer
        self.states: dict[int, TrainingState] = {}
        self._phase: int | None = None

    def before_step(self, step: int) -> None:
        """Changes the plan if the schedule wants another one for a step. Collective.

        Args:
            step: The number of steps done.
        """
        if self._worker.plan.policy != self._schedule.policy_at(step).describe():
            self.note()
        self._worker.advance(step, self._optimizer)
        self._phase = self._schedule.phase_at(step)

    def note(self) -> None:
        """Measures what this worker holds after a step."""
        if self._phase is None:
            return
        state, known = measure(self._worker, self._optimizer), self.states.get(self._phase)
        if known is None or state.state_bytes > known.state_bytes:
            self.states[self._phase] = state

    @property
    def largest(self) -> TrainingState:
        """What this worker held at most."""
        return max(self.states.values(), key=lambda state: state.state_bytes)

    def report(self, dense_bytes: int) -> list[dict[str, Any]]:
        """Returns the entries of ``phases`` in the report of the run. Collective.

        Args:
            dense_bytes: The state of the dense model.
        """
        gathered: list[dict[int, int]] = [{}] * dist.get_world_size()
        dist.all_gather_object(gathered, {phase: state.state_bytes for phase, state in self.states.items()})
        schedule, result = self._schedule, []
        assert schedule.steps is not None
        ends = (*schedule.starts[1:], schedule.steps)
        for number, (phase, start, end) in enumerate(zip(schedule.phases, schedule.starts, ends, strict=True)):
            most = max((held[number] for held in gathered if number in held), default=None)
            result.append(
                {
                    "steps": end - start,
                    "policy": phase.policy.describe(),
                    "resample_every": phase.resample_every,
                    "alternate": None if phase.alternate is None else phase.alternate.describe(),
                    "alternate_every": phase.alternate_every,
                    "state_bytes": most,
                    "state_share": None if most is None else most / dense_bytes,
                }
            )
        return result
