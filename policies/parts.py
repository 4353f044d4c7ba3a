"""The parts of a schedule: each policy that it trains with, where it first has its turn."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import Literal

from sdp_compile.policies.base import Policy
from sdp_compile.policies.schedule import Phase, Schedule

Kind = Literal["phase", "owners", "alternate", "back"]
"""Why the policy changes: a phase begins, owners are drawn again, its alternate has its turn, or that has had it."""


@dataclass(frozen=True)
class Part:
    """A policy of a schedule, where it first has its turn.

    Attributes:
        phase: The number of the phase, from 1.
        kind: Why the policy changes here.
        policy: The policy.
        step: The first step, from 0.
        share: The share of all steps that train with it; those of owners that are drawn again count for the part with
            which the phase begins.
        rate: How often the policy changes so per step of the schedule; 0 where a phase begins, which happens once.
    """

    phase: int
    kind: Kind
    policy: Policy
    step: int
    share: float = 0.0
    rate: float = 0.0


def with_steps(schedule: Schedule) -> Schedule:
    """Returns a schedule that knows its number of steps: its own, or so many that each policy has a turn."""
    if schedule.steps is not None:
        return schedule
    turns = ((phase, max(phase.resample_every or 1, phase.alternate_every or 1)) for phase in schedule.phases)
    return schedule.replace(steps=max(ceil(2 * (turn + 1) / phase.share) for phase, turn in turns))


def parts_of(schedule: Schedule) -> tuple[Part, ...]:
    """Returns the parts of a schedule, in the order of their steps.

    Where a phase draws owners again, or has an alternate, each change of that kind is listed once, if the phase is long
    enough for it.

    Args:
        schedule: The schedule; without a number of steps, it is taken to be long enough.
    """
    known = with_steps(schedule)
    assert known.steps is not None
    result: list[Part] = []
    ends = (*known.starts[1:], known.steps)
    for number, (phase, start, end) in enumerate(zip(known.phases, known.starts, ends, strict=True), 1):
        for part in _parts_of_phase(number, phase, start, end - start):
            # Owners that are drawn again just after an alternate come with the change back.
            if part.kind == "phase" or part.policy != result[-1].policy:
                result.append(part)
    return tuple(result)


def _parts_of_phase(number: int, phase: Phase, start: int, steps: int) -> list[Part]:
    every = phase.alternate_every or inf
    own = phase.share / every
    places: list[tuple[float, Kind, float, float]] = [(0, "phase", phase.share - own, 0.0)]
    if phase.alternate is not None:
        places += [(every - 1, "alternate", own, own), (every, "back", 0.0, own)]
    if phase.resample_every is not None:
        drawn = phase.resample_every
        places.append((drawn + ((drawn + 1) % every == 0), "owners", 0.0, phase.share / drawn))
    return [
        Part(number, kind, phase.policy_at(int(step)), start + int(step), share, rate)
        for step, kind, share, rate in sorted(places)
        if step < steps
    ]
