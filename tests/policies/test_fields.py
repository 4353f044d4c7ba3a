"""Fields of policies: defaults, mistakes, copies."""

from __future__ import annotations

import pickle

import pytest

from sdp_compile.errors import PolicyError, SDPError
from sdp_compile.policies import (
    BlockPolicy,
    NeuronPolicy,
)


def test_defaults():
    policy = NeuronPolicy()
    assert (policy.coverage, policy.replicas, policy.design, policy.masking) == (0.5, None, "cyclic", "forward")
    assert BlockPolicy().design == "balanced"
    assert NeuronPolicy(replicas=3).coverage is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"foo": 1}, r"NeuronPolicy has no field 'foo'\. Its fields are coverage, replicas"),
        ({"covrage": 0.5}, "Did you mean 'coverage'"),
        ({"coverage": 1.5}, r"coverage=1\.5 is not valid.*\(0, 1\]"),
        ({"coverage": 0}, r"coverage=0 is not valid"),
        ({"coverage": -0.5}, r"coverage=-0\.5 is not valid"),
        ({"coverage": True}, r"coverage=True is not valid"),
        ({"coverage": "0.5"}, r"coverage='0\.5' is not valid"),
        ({"coverage": float("nan")}, r"coverage=nan is not valid"),
        ({"coverage": float("inf")}, r"coverage=inf is not valid"),
        ({"replicas": 0}, "replicas=0 is not valid; replicas is the number of workers"),
        ({"replicas": 1.5}, r"replicas=1\.5 is not valid"),
        ({"replicas": True}, r"replicas=True is not valid"),
        ({"coverage": 0.5, "replicas": 2}, "coverage or replicas, not both"),
        ({"axes": "some"}, "axes='some' is not valid; input should be 'disjoint' or 'all'"),
        ({"design": "cylic"}, "unknown design 'cylic'. Did you mean 'cyclic'"),
        ({"masking": "backward", "rescale": True}, "rescale=True needs masking='forward'"),
        ({"align": 0}, "align=0 is not valid"),
        ({"node_size": 0}, "node_size=0 is not valid; node_size is the number of workers of each node"),
        ({"node_size": True}, "node_size=True is not valid"),
        ({"node_size": 2.0}, r"node_size=2\.0 is not valid"),
        ({"rules": {"a": {"node_size": 2}}}, "no field 'node_size'"),
        ({"rules": {"a": {"coverage": 2}}}, "the rule 'a' is not valid.*coverage=2"),
        ({"rules": {"a": {"covrage": 0.2}}}, "no field 'covrage'. Did you mean 'coverage'"),
        ({"rules": {"a": "sharde"}}, "the rule 'a' must be.*'shared', got 'sharde'"),
        ({"rules": ["a"]}, "rules maps patterns"),
        ({"level": "block"}, "level='block' is not valid"),
    ],
)
def test_mistakes_are_policy_errors(fields, message):
    with pytest.raises(PolicyError, match=message) as caught:
        NeuronPolicy(**fields)
    assert isinstance(caught.value, SDPError) and isinstance(caught.value, ValueError)
    with pytest.raises(PolicyError, match=message):
        NeuronPolicy.model_validate(fields)


def test_policies_are_frozen_and_replaced():
    policy = NeuronPolicy(replicas=3, align=8)
    with pytest.raises(ValueError, match="frozen"):
        policy.align = 4
    assert policy.replace(coverage=0.25) == NeuronPolicy(coverage=0.25, align=8)
    assert NeuronPolicy().replace(replicas=2).coverage is None
    with pytest.raises(PolicyError, match="coverage=7"):
        policy.replace(coverage=7)
    assert pickle.loads(pickle.dumps(policy)) == policy
