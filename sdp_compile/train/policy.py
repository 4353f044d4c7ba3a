"""The policy that the options of ``train`` ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdp_compile.command_words import DEFAULT_COVERAGE, policy_fields
from sdp_compile.errors import PolicyError, SDPError
from sdp_compile.train.settings import TrainSettings

if TYPE_CHECKING:
    from sdp_compile.policies import Policy
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


def check_plan(analysis: Analysis, policy: Policy, workers: int) -> None:
    """Raises `PolicyError` if a policy has no plan for so many workers, before some are lost."""
    from sdp_compile.planning.making import make_plan

    try:
        make_plan(analysis, policy, workers)
    except SDPError as error:
        raise PolicyError(
            f"With {workers} workers, which --min-workers allows, training could not go on: {error} Choose a larger "
            "--min-workers or another policy."
        ) from error
