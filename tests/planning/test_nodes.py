"""The size of a node: the policy's, else torchrun's, else all workers. What losing nodes costs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings

from sdp_compile.errors import PolicyError
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.nodes import Launch, launched
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import NeuronPolicy
from sdp_compile.structure.families import Structure
from tests.planning.plans import Given, owners_by_element, plan_for, plans
from tests.synthetic import analysis_of, mlp

TORCHRUN = {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1", "GROUP_WORLD_SIZE": "2"}


def under(monkeypatch: pytest.MonkeyPatch, **variables: str | None) -> Launch:
    """What rank 5 of 8 finds in an environment that differs from torchrun's in ``variables``; None removes one."""
    for name, value in {**TORCHRUN, **variables}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    return launched(5, 8)


def test_torchrun_says_how_many_workers_a_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert under(monkeypatch) == Launch(4)
    assert under(monkeypatch, LOCAL_RANK=None, GROUP_WORLD_SIZE=None) == Launch(4), "other launchers set less"
    assert under(monkeypatch, LOCAL_WORLD_SIZE="8", LOCAL_RANK="5", GROUP_WORLD_SIZE="1") == Launch(8)
    for variables in ({"LOCAL_WORLD_SIZE": None}, {"LOCAL_WORLD_SIZE": "0"}, {"LOCAL_WORLD_SIZE": "four"}):
        assert under(monkeypatch, **variables) == Launch()
    for variables in ({"WORLD_SIZE": "16"}, {"RANK": "1"}):
        assert under(monkeypatch, **variables) == Launch(), "the variables of another job"


def test_unequal_nodes_count_as_one_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    for variables, why in (
        ({"LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "2"}, "do not fill nodes of this size"),
        ({"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1", "GROUP_WORLD_SIZE": "3"}, "do not fill nodes of this size"),
        ({"LOCAL_RANK": "2"}, "are not numbered node by node"),
    ):
        launch = under(monkeypatch, **variables)
        assert launch.node_size is None and why in launch.note
        plan = make_plan(analysis_of(mlp()), NeuronPolicy(), 8, launch)
        assert plan.node_size == 0 and launch.note in plan.notes and launch.note in " ".join(str(plan.report()).split())
        told = make_plan(analysis_of(mlp()), NeuronPolicy(node_size=2), 8, launch)
        assert told.node_size == 2 and launch.note not in told.notes


def test_the_policy_comes_first_then_the_launcher_then_one_node() -> None:
    analysis = analysis_of(mlp())
    sizes = [
        make_plan(analysis, NeuronPolicy(node_size=size), 8, launch).node_size
        for size, launch in itertools.product((None, 2, 8), (None, Launch(), Launch(4)))
    ]
    assert sizes == [0, 0, 4, 2, 2, 2, 0, 0, 0]
    with pytest.raises(PolicyError, match="node_size=3 does not divide the 8 workers"):
        make_plan(analysis, NeuronPolicy(node_size=3, coverage=1.0), 8, Launch(4))


def test_a_launchers_nodes_are_as_good_as_the_policys() -> None:
    structure = mlp()
    by_launch = make_plan(analysis_of(structure), NeuronPolicy(slots=2), 8, Launch(2))
    assert by_launch.digest == plan_for(structure, NeuronPolicy(slots=2, node_size=2), 8).digest
    assert by_launch.digest != plan_for(structure, NeuronPolicy(slots=2), 8).digest
    assert "node_size" not in by_launch.policy, "the policy is shown as the user gave it"
    one_node = plan_for(structure, NeuronPolicy(), 8)
    assert plan_for(structure, NeuronPolicy(node_size=8), 8).digest == one_node.digest


def test_a_policy_of_ones_own_is_told_the_size() -> None:
    seen = []

    class Asking(Given):
        def partition(self, structure: Structure, workers: int) -> dict[str, object]:
            seen.append(self.node_size)
            return {}

    for node_size, launch in ((None, Launch(2)), (2, None), (None, None)):
        make_plan(analysis_of(mlp()), Asking(owners={}, node_size=node_size), 4, launch)
    assert seen == [2, 2, None]


@settings(deadline=None, max_examples=40)
@given(plans())
def test_redundancy_counts_the_owners_of_each_element(case: tuple[Structure, Plan]) -> None:
    structure, plan = case
    size = plan.node_size or plan.workers
    assert plan.nodes == plan.workers // size
    cut = {
        owners
        for name in structure.layouts
        if plan.state[name].kind == "parameter"
        for owners in owners_by_element(structure, plan, name).flat
        if len(owners) < plan.workers
    }
    found = plan.redundancy()
    assert found.workers == min(map(len, cut), default=plan.workers)
    assert found.nodes == min((len({owner // size for owner in owners}) for owners in cut), default=plan.nodes)
    for lost in itertools.combinations(range(plan.nodes), found.spare_nodes):
        assert all(any(owner // size not in lost for owner in owners) for owners in cut)
    for lost in itertools.combinations(range(plan.workers), found.spare_workers):
        assert all(owners.difference(lost) for owners in cut)
