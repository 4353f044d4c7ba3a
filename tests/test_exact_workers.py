"""Exactness over numbers of workers and replicas, and with every axis cut."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sdp_compile import NeuronPolicy, PolicyError
from tests.exactness import Example, example
from tests.oracle import assert_exact


@pytest.fixture(scope="module", params=["gpt2", "resnet18", "swin_t"])
def subject(request: pytest.FixtureRequest) -> Iterator[Example]:
    yield example(request.param)


@pytest.mark.parametrize("workers", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_numbers_of_workers_and_replicas(subject: Example, replicas: int, workers: int) -> None:
    policy = NeuronPolicy(replicas=replicas)
    if replicas > workers:
        with pytest.raises(PolicyError, match="replicas"):
            subject.plan(policy, workers)
        return
    plan = subject.plan(policy, workers)
    for family in plan.families:
        # An axis with too few units for so many slots is owned by more.
        assert {len(owners) for _, owners in plan.owners(family).runs} == {family.replicas}
        assert family.replicas >= replicas
        if family.units >= workers:
            assert family.replicas == replicas
    for rank in {0, workers - 1}:
        assert_exact(subject.compiled(plan, rank), subject.model, plan, rank, subject.args, subject.kwargs)


def test_every_axis_cut(subject: Example) -> None:
    """axes="all", scope="all" at 3 of 4: every two slots share a worker, so every element has an owner."""
    plan = subject.plan(NeuronPolicy(replicas=3, axes="all", scope="all"), 4)
    assert len(plan.families) > len(subject.plan(NeuronPolicy(replicas=3), 4).families)
    assert plan.coverage().min >= 1
    for rank in (0, 2):
        assert_exact(subject.compiled(plan, rank), subject.model, plan, rank, subject.args, subject.kwargs)
