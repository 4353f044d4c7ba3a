"""Plans as JSON and their digest: what they cover, and texts that are refused."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given, settings

from sdp_compile.errors import PlanError
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import AutoPolicy, NeuronPolicy
from tests.planning.plans import plan_for, plans
from tests.synthetic import mlp


@settings(deadline=None, max_examples=40)
@given(plans())
def test_json_round_trip_without_the_model(case):
    structure, plan = case
    text = plan.to_json()
    read = Plan.from_json(text)
    assert read == plan and read.digest == plan.digest and read.to_json() == text
    assert hash(read) == hash(plan)
    for name, rank in itertools.product(structure.layouts, range(plan.workers)):
        assert torch.equal(read.mask(name, rank), plan.mask(name, rank))
    assert [bucket.owners for bucket in read.buckets(None, 100)] == [
        bucket.owners for bucket in plan.buckets(None, 100)
    ]
    assert read.memory(0) == plan.memory(0) and read.flops(0) == plan.flops(0)
    assert str(read.report()) == str(plan.report())


def test_digest_covers_what_matters_and_nothing_else():
    structure = mlp()
    plan = plan_for(structure, NeuronPolicy(), 4)
    assert len(plan.digest) == 64 and int(plan.digest, 16) >= 0
    assert plan_for(structure, NeuronPolicy(), 4).digest == plan.digest
    assert plan_for(structure, NeuronPolicy(coverage=0.25), 4).digest != plan.digest
    assert plan_for(structure, NeuronPolicy(rescale=True), 4).digest != plan.digest
    assert plan_for(mlp(hidden=24), NeuronPolicy(), 4).digest != plan.digest
    assert plan_for(structure, NeuronPolicy(), 8).digest != plan.digest
    # The same partition by another route, with other remarks.
    assert plan_for(structure, AutoPolicy(), 4).digest == plan.digest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "sdp-compile plan 0"}', "{"])
def test_other_texts_are_no_plans(text):
    with pytest.raises(PlanError, match="Not a plan"):
        Plan.from_json(text)


def test_damaged_plans_are_refused():
    document = json.loads(plan_for(mlp(), NeuronPolicy(), 4).to_json())
    del document["state"]
    with pytest.raises(PlanError, match="damaged"):
        Plan.from_json(json.dumps(document))
    document = json.loads(plan_for(mlp(), NeuronPolicy(), 4).to_json())
    document["families"][0]["units"] = 3
    with pytest.raises(PlanError, match=r"damaged.*'layers.0.hidden' has 3 units"):
        Plan.from_json(json.dumps(document))
