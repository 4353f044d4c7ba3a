"""Rules: exceptions for parts of the model, by patterns of names."""

from __future__ import annotations

import pytest

from sdp_compile.errors import PolicyError
from sdp_compile.policies import NeuronPolicy, Override
from sdp_compile.policies.rules import check_rules, decide, name_and_modules
from tests.synthetic import mlp

SMALL, LARGE = Override(coverage=0.25), Override(replicas=3)


def test_rules_share_and_override():
    structure = mlp(hidden=16, layers=3)
    policy = NeuronPolicy(rules={"layers.0": "shared", "layers.1.*": {"coverage": 0.25}, "layers.1.up": {"align": 2}})
    partition = policy.partition(structure, 4)
    assert list(partition) == ["layers.1.hidden", "layers.2.hidden"]
    assert {len(owners) for owners in partition["layers.2.hidden"]} == {2}
    # The last rule that names the axis decides: align only, coverage as the policy's.
    assert {len(owners) for owners in partition["layers.1.hidden"]} == {2}
    reordered = NeuronPolicy(rules={"layers.1.up": {"align": 2}, "layers.1.*": {"coverage": 0.25}})
    assert {len(owners) for owners in reordered.partition(structure, 4)["layers.1.hidden"]} == {1}
    with pytest.raises(PolicyError, match=r"'layer.1' matches no parameter.*Did you mean 'layers.1'"):
        NeuronPolicy(rules={"layer.1": "shared"}).partition(structure, 4)


def test_names_of_a_parameter_are_its_own_and_those_of_its_modules():
    assert name_and_modules("layers.0.up.weight") == ["layers.0.up.weight", "layers.0.up", "layers.0", "layers"]


@pytest.mark.parametrize(
    ("rules", "parameters", "pattern"),
    [
        ({}, ["a.w"], None),
        ({"b": "shared"}, ["a.w"], None),
        ({"a": SMALL, "a.w": LARGE}, ["a.w"], "a.w"),
        ({"a.w": LARGE, "a": SMALL}, ["a.w"], "a"),
        ({"*.w": LARGE, "b.*": SMALL}, ["a.w", "b.v"], "b.*"),
        ({"a": "shared", "a.w": LARGE}, ["a.w"], "a"),
        ({"a.w": LARGE, "*": "shared", "a": SMALL}, ["a.w"], "*"),
        ({"A": SMALL}, ["a.w"], None),
    ],
)
def test_the_last_rule_decides_and_shared_wins(rules, parameters, pattern):
    decision = decide(rules, parameters)
    assert (decision and decision.pattern) == pattern
    if decision is not None:
        expected = None if rules[pattern] == "shared" else rules[pattern]
        assert decision.override == expected


@pytest.mark.parametrize("pattern", ["w*", "layers.?.up.weight", "layers.1", "layers"])
def test_a_rule_may_name_any_parameter_or_module(pattern):
    check_rules({pattern: "shared"}, ["layers.1.up.weight", "w"])
