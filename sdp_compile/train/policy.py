"""From the command line's words to a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdp_compile.train.settings import DEFAULT_COVERAGE, TrainSettings, policy_fields

if TYPE_CHECKING:
    from sdp_compile.policies import Policy


def choose_policy(settings: TrainSettings) -> Policy:
    """The policy that ``settings`` ask for: a registered name at their coverage, or a TOML file's."""
    from sdp_compile.policies import resolve_policy

    if settings.policy_is_file:
        fields = policy_fields(settings.coverage, settings.masking)
    else:
        fields = policy_fields(settings.coverage or DEFAULT_COVERAGE, settings.masking)
    return resolve_policy(settings.policy, **fields)
