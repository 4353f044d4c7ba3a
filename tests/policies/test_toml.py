"""Policies as TOML files: round trip, and files that cannot be read."""

from __future__ import annotations

import pytest

from sdp_compile.errors import PolicyError
from sdp_compile.policies import (
    AutoPolicy,
    BlockPolicy,
    NeuronPolicy,
    resolve_policy,
)
from sdp_compile.policies.base import Override


@pytest.mark.parametrize(
    "policy",
    [
        NeuronPolicy(),
        BlockPolicy(replicas=2, granularity="layer", strict=True, seed=7),
        AutoPolicy(coverage=0.25, node_size=8),
        NeuronPolicy(rules={'quo"ted.*': "shared", "h.0": {"coverage": 0.25}, "h.*": Override(replicas=1)}, slots=4),
    ],
)
def test_toml_round_trip(policy, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(policy.to_toml(), encoding="utf-8")
    assert resolve_policy(str(path)) == policy
    assert resolve_policy(path) == policy


def test_broken_toml_files(tmp_path):
    path = tmp_path / "broken.toml"
    with pytest.raises(PolicyError, match=r"policy file .*missing\.toml' does not exist"):
        resolve_policy(str(tmp_path / "missing.toml"))
    path.write_text('level = "neuron"\ncoverage = = 2\n')
    with pytest.raises(PolicyError, match=r"broken\.toml' is not valid TOML.*line 2"):
        resolve_policy(str(path))
    path.write_text('level = "neuron"\ncovrage = 0.5\n')
    with pytest.raises(PolicyError, match=r"broken\.toml': NeuronPolicy has no field 'covrage'"):
        resolve_policy(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="cannot be read"):
        resolve_policy(path)
    with pytest.raises(PolicyError, match="cannot be read"):
        resolve_policy(tmp_path)
