"""The policy or the schedule that the options of ``train`` ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdp_compile.command_words import DEFAULT_COVERAGE, policy_fields
from sdp_compile.errors import PolicyError, SDPError
from sdp_compile.train.settings import TrainSettings

if TYPE_CHECKING:
    from sdp_compile.policies import Policy, Schedule
    from sdp_compile.structure.analysis import Analysis


def choose_policy(settings: TrainSettings) -> Policy:
    """Returns the policy of ``settings``: a registered name at their coverage, or a TOML file's.

    Raises `PolicyError` for a policy that does not exist, or a field that it does not have.
    """
    from sdp_compile.policies import resolve_policy

    if settings.policy_is_file:
        fields = policy_fields(settings.coverage, settings.masking, settings.node_size)
    else:
        fields = policy_fields(settings.coverage or DEFAULT_COVERAGE, settings.masking, settings.node_size)
    return resolve_policy(settings.policy, **fields)


def choose_schedule(settings: TrainSettings) -> Schedule:
    """Returns the schedule of ``settings``; a policy is one of a single phase, with a cosine learning rate.

    Raises `PolicyError` for a schedule or policy that does not exist, or a field that it does not have.
    """
    from sdp_compile.policies import LearningRate, Phase, Schedule, resolve_schedule

    if settings.schedule is None:
        learning_rate = LearningRate(shape="cosine", warm_up=0.1, last=0.1)
        schedule = Schedule([Phase(choose_policy(settings))], steps=settings.steps, learning_rate=learning_rate)
    else:
        schedule = resolve_schedule(settings.schedule, steps=settings.steps).on_nodes(settings.node_size)
    power = settings.rate_by_owners
    return schedule if power is None else schedule.replace(rate_by_owners=power)


def check_plans(analysis: Analysis, schedule: Schedule, workers: int) -> None:
    """Raises `PolicyError` if a policy has no plan for so many workers, before some are lost."""
    from sdp_compile.planning.making import make_plan

    try:
        for policy in schedule.policies():
            make_plan(analysis, policy, workers)
    except SDPError as error:
        raise PolicyError(
            f"With {workers} workers, which --min-workers allows, training could not go on: {error} Choose a larger "
            "--min-workers or another policy."
        ) from error
