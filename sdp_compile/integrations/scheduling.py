"""Schedules in training frameworks: how many steps they have, and when a model gets its next plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch.optim.optimizer import Optimizer

from sdp_compile.compiler import PolicyOrSchedule
from sdp_compile.errors import SDPError
from sdp_compile.policies import Policy, Schedule, is_schedule, resolve_policy, resolve_schedule
from sdp_compile.runtime.module.sdp_module import SDPModule

STEPS_DONE = "steps_done"
"""Under this key the saved state of an optimizer says how many steps of a schedule it has done."""


def resolved(policy: PolicyOrSchedule, masking: str | None, scheduled_rate: bool) -> Policy | Schedule:
    """Returns the policy or schedule that a user named.

    Args:
        policy: A policy or a schedule, in any form.
        masking: In place of the policy's own; None keeps it.
        scheduled_rate: Whether the learning rate is the schedule's.

    Raises:
        SDPError: If there is no such policy or schedule, or the other arguments do not go with it.
    """
    if is_schedule(policy):
        if masking is not None:
            raise SDPError("masking= replaces that of a policy. Write it into the phases of the schedule.")
        return resolve_schedule(policy)
    if scheduled_rate:
        raise SDPError("scheduled_rate=True needs a schedule. Pass policy=sdp.Schedule(...), its name or its file.")
    return resolve_policy(policy, **({} if masking is None else {"masking": masking}))  # type: ignore[arg-type]


def with_steps(policy: PolicyOrSchedule, steps: Callable[[], float]) -> PolicyOrSchedule:
    """Returns what a user passed; a schedule that does not know its number of steps gets the framework's.

    Args:
        policy: A policy or a schedule, in any form.
        steps: Returns the number of steps that the framework will train; not finite or not positive if it is unknown.
    """
    if not is_schedule(policy):
        return policy
    schedule = resolve_schedule(policy)
    if schedule.steps is not None or not 0 < (known := steps()) < float("inf"):
        return schedule
    return schedule.replace(steps=int(known))


class StepCounts:
    """Counts the steps of optimizers, and gives their models the plans of the next steps, for loops of users.

    A step of a model is done when all of its optimizers have stepped, because a change of plan drops gradients.

    Args:
        model_of: Returns the compiled model whose parameters an optimizer steps; None for other optimizers.
    """

    def __init__(self, model_of: Callable[[Optimizer], SDPModule | None]) -> None:
        self._model_of = model_of
        self._done: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

    def add(self, optimizer: Optimizer) -> None:
        """Notes an optimizer that has not stepped yet."""
        self._done.setdefault(optimizer, 0)

    def count(self, optimizer: Optimizer) -> None:
        """Counts a step of an optimizer that was added. Collective where the plan changes."""
        self._done[optimizer] += 1
        self._advance(optimizer)

    def saved(self, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        """Returns the full state of an optimizer, with its number of steps if its model follows a schedule.

        Args:
            optimizer: The optimizer.
            state: Its full state; empty on ranks that do not save it.
        """
        model = self._model_of(optimizer)
        if not state or model is None or model.schedule is None:
            return state
        return {**state, STEPS_DONE: self._done[optimizer]}

    def restore(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """Takes over the number of steps from a state that is about to be loaded. Collective where the plan changes.

        Args:
            optimizer: The optimizer.
            state: What `saved` returned, or any other state.
        """
        if STEPS_DONE in state:
            self._done[optimizer] = int(state[STEPS_DONE])
            self._advance(optimizer)

    def _advance(self, optimizer: Optimizer) -> None:
        model = self._model_of(optimizer)
        if model is None or model.schedule is None:
            return
        done = {one: steps for one, steps in self._done.items() if self._model_of(one) is model}
        model.advance(min(done.values()), list(done))
