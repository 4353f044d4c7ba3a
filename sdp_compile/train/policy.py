"""The policy that the options of ``train`` ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdp_compile.command_words import DEFAULT_COVERAGE, policy_fields
from sdp_compile.train.settings import TrainSettings

if TYPE_CHECKING:
    from sdp_compile.policies import Policy


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
