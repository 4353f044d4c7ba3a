"""The plans of a schedule: one for each of its parts, and what moves where one takes the place of another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sdp_compile.errors import PolicyError
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.moves import Traffic
from sdp_compile.planning.nodes import Launch
from sdp_compile.planning.plan import Plan
from sdp_compile.policies.parts import Part, parts_of
from sdp_compile.policies.schedule import Schedule
from sdp_compile.structure.analysis import Analysis


@dataclass(frozen=True, eq=False)
class PlannedPart:
    """A part of a schedule with its plan.

    Attributes:
        part: The part.
        plan: Its plan.
        before: The plan whose place it takes; None for the first one.
    """

    part: Part
    plan: Plan
    before: Plan | None

    @cached_property
    def moves(self) -> Traffic | None:
        """What the workers send each other at this change of plan, with AdamW; None for the first part."""
        return None if self.before is None else self.before.moves(self.plan)


def planned_parts(
    analysis: Analysis, schedule: Schedule, workers: int, launch: Launch | None = None
) -> tuple[PlannedPart, ...]:
    """Returns the parts of a schedule with their plans, in the order of their steps.

    Args:
        analysis: The model.
        schedule: The schedule; it need not know the number of steps.
        workers: Number of workers.
        launch: What the launcher says about nodes, for policies without ``node_size``.

    Raises:
        PolicyError: If a phase has no plan.
    """
    plans: dict[str, Plan] = {}
    result: list[PlannedPart] = []
    for part in parts_of(schedule):
        key = repr(part.policy.describe())
        if key not in plans:
            try:
                plans[key] = make_plan(analysis, part.policy, workers, launch)
            except PolicyError as error:
                raise type(error)(f"Phase {part.phase} of the schedule: {error}") from error
        result.append(PlannedPart(part, plans[key], result[-1].plan if result else None))
    return tuple(result)
