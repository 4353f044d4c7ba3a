"""The view ``phases``: what the worker that has most holds, computes and sends in each phase of a schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdp_compile.errors import SDPError
from sdp_compile.inspector.plain import View
from sdp_compile.planning.nodes import Launch
from sdp_compile.planning.phases import PlannedPart, planned_parts
from sdp_compile.policies.schedules import resolve_schedule

if TYPE_CHECKING:
    from sdp_compile.inspector.subject import Subject
    from sdp_compile.policies import Policy, Schedule
    from sdp_compile.policies.parts import Kind, Part


@dataclass(frozen=True)
class PhasePart:
    """A policy of a schedule, where it first has its turn.

    Attributes:
        phase: The number of the phase, from 1.
        kind: Why the plan changes: a ``"phase"`` begins, ``"owners"`` are drawn again, its ``"alternate"`` has its
            turn, or the phase's policy is ``"back"`` after it.
        words: The policy, or the change, in words.
        policy: The fields of the policy.
        share: The share of all steps that train with it; 0 for ``"owners"`` and ``"back"``, which count before.
        first_step, steps: The first step, and the number of steps of the phase; None if the schedule has none.
        coverage: Mean share of the workers that own a cut element; 1 if nothing is cut.
        state, state_share: Bytes of parameters, gradients and optimizer state, and the same over dense training.
        flops_share: Forward FLOPs over dense training.
        sent, sent_share: Bytes sent per step with rings, and the same over data parallelism.
        moved, moved_total: Bytes that a worker sends at most, and that all workers send, when this plan takes the place
            of the one before.
    """

    phase: int
    kind: Kind
    words: str
    policy: dict[str, Any]
    share: float
    first_step: int | None
    steps: int | None
    coverage: float
    state: int
    state_share: float
    flops_share: float
    sent: float
    sent_share: float
    moved: int
    moved_total: int


@dataclass(frozen=True)
class PhasesView(View):
    """The parts of a schedule in the order of their steps.

    Attributes:
        steps: The number of steps; None if the schedule does not know it.
        rate_by_owners: The power of a parameter's share of owners by which its learning rate is multiplied.
        parts: The parts.
    """

    model: str
    workers: int
    optimizer: str
    steps: int | None
    dense_state: int
    dense_sent: float
    rate_by_owners: float
    parts: tuple[PhasePart, ...]


def phases_view(subject: Subject, schedule: Any = None) -> PhasesView:
    """Returns the phases of a schedule for the workers and nodes of a subject's plan.

    Args:
        subject: The model, and the plan of its workers.
        schedule: The schedule, in any form that `sdp_compile.policies.resolve_schedule` takes.

    Raises:
        SDPError: If there is no schedule, or a phase has no plan.
    """
    if schedule is None:
        raise SDPError("The view 'phases' is that of a schedule, and there is none. Name one.")
    return view_of(subject, resolve_schedule(schedule), planned(subject, resolve_schedule(schedule)))


def planned(subject: Subject, schedule: Schedule) -> tuple[PlannedPart, ...]:
    """Returns the plans of a schedule for the workers and nodes of a subject's plan; see `planned_parts`."""
    plan = subject.plan
    return planned_parts(subject.analysis, schedule, plan.workers, Launch(plan.node_size or None))


def view_of(subject: Subject, schedule: Schedule, parts: Sequence[PlannedPart]) -> PhasesView:
    """Returns the view of parts that are planned.

    Args:
        subject: The model, and a plan of it.
        schedule: The schedule.
        parts: Its parts; see `planned`.
    """
    plan = subject.plan
    return PhasesView(
        model=subject.model,
        workers=plan.workers,
        optimizer="AdamW",
        steps=schedule.steps,
        dense_state=plan.memory().total,
        dense_sent=plan.communication(0).dense,
        rate_by_owners=schedule.rate_by_owners,
        parts=tuple(_row(schedule, one) for one in parts),
    )


def words(schedule: Schedule, part: Part) -> str:
    """Returns a part of a schedule in words: its policy, or why the plan changes."""
    phase = schedule.phases[part.phase - 1]
    if part.kind == "owners":
        return f"owners drawn again, every {phase.resample_every} steps"
    if part.kind == "back":
        return "back to the phase's policy"
    if part.kind == "alternate":
        return f"{policy_words(part.policy)}; every {phase.alternate_every} steps"
    return policy_words(part.policy)


def policy_words(policy: Policy) -> str:
    """Returns a policy in words: its name, masking and number of owners."""
    owners = f"coverage {policy.coverage:g}" if policy.coverage is not None else f"{policy.replicas} replicas"
    return f"{policy.describe()['policy']}, {policy.masking}, {owners}"


def _row(schedule: Schedule, one: PlannedPart) -> PhasePart:
    plan, part = one.plan, one.part
    ranks = [members[0] for members in plan.worker_classes()]
    state = max(plan.memory(rank).total for rank in ranks)
    sent, dense_sent = max(plan.communication(rank).total for rank in ranks), plan.communication(0).dense
    cut = plan.coverage().cut
    steps = None
    if schedule.steps is not None:
        starts = (*schedule.starts, schedule.steps)
        steps = starts[part.phase] - starts[part.phase - 1]
    return PhasePart(
        phase=part.phase,
        kind=part.kind,
        words=words(schedule, part),
        policy=part.policy.describe(),
        share=part.share,
        first_step=None if steps is None else part.step,
        steps=steps,
        coverage=1.0 if cut is None else cut.mean / plan.workers,
        state=state,
        state_share=_over(state, plan.memory().total),
        flops_share=_over(max(map(plan.flops, ranks)), plan.flops()),
        sent=sent,
        sent_share=_over(sent, dense_sent),
        moved=0 if one.moves is None else int(one.moves.nbytes.sum(1).max(initial=0)),
        moved_total=0 if one.moves is None else one.moves.total,
    )


def _over(value: float, dense: float) -> float:
    return value / dense if dense else 1.0
