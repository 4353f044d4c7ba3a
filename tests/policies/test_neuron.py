"""NeuronPolicy: which axes are cut, with how many owners, and what it refuses."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.errors import NothingToPartition, PolicyError
from sdp_compile.policies import NeuronPolicy
from sdp_compile.structure.layout import Leaf
from tests.synthetic import attention, convolutions, mlp, nothing, recurrent, structure_of


def test_heads_are_cut_rather_than_the_values_dimension():
    partition = NeuronPolicy().partition(attention(), 4)
    assert list(partition) == ["heads"]
    assert [len(owners) for owners in partition["heads"]] == [2, 2, 2, 2]
    assert any("value" in note for note in partition.notes)


def test_three_heads_count_for_what_they_save():
    """Over two slots three heads leave one worker with two thirds; the value's eight units with half."""
    structure = attention(heads=3, head_width=8, width=8)
    weights = {family.name: family.nbytes for family in structure.axes}
    assert weights["heads"] > weights["value"]
    assert list(NeuronPolicy(replicas=1).partition(structure, 2)) == ["heads"]  # 1/3 of all beats 1/2 of a third
    alike = structure_of({"w": [Leaf(3, "three"), Leaf(8, "eight")]})
    assert list(NeuronPolicy(replicas=1).partition(alike, 2)) == ["eight"]


def test_an_axis_is_cut_where_only_some_workers_save():
    """Four units in five slots of which each worker owns four: worker 3 owns all units, the others three."""
    owners = NeuronPolicy(replicas=4).partition(mlp(hidden=4), 5)["layers.0.hidden"]
    assert [len(owners.owned(rank)) for rank in range(5)] == [3, 3, 3, 4, 3]


def test_a_chain_of_convolutions_is_cut_at_every_second_axis():
    partition = NeuronPolicy().partition(convolutions((8, 8, 8, 8, 8)), 4)
    chosen = sorted(int(name.removeprefix("channels.")) for name in partition)
    assert all(later - earlier >= 2 for earlier, later in pairwise(chosen))
    assert len(chosen) >= 2


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([attention(), mlp(), convolutions()]))
def test_every_unit_has_exactly_the_replicas(workers, replicas, structure):
    if replicas > workers:
        with pytest.raises(PolicyError, match="more than the"):
            NeuronPolicy(replicas=replicas).partition(structure, workers)
        return
    partition = NeuronPolicy(replicas=replicas).partition(structure, workers)
    if workers == replicas:
        assert not partition
    for name, owners in partition.items():
        units = structure.by_name[name].units
        assert len(owners) == units
        counts = {len(workers_of_unit) for workers_of_unit in owners}
        if units >= workers:
            assert counts == {replicas}
        else:
            assert len(counts) == 1 and min(counts) >= replicas
        assert all(len(owners.owned(rank)) for rank in range(workers))


def test_too_few_units_raise_the_replicas_and_say_so():
    structure = mlp(hidden=3)
    partition = NeuronPolicy(replicas=1).partition(structure, 8)
    assert {len(owners) for owners in partition["layers.0.hidden"]} == {3}  # ceil(8 / 3)
    assert any("3 units are too few" in note and "3 owners of 8" in note for note in partition.notes)
    with pytest.raises(PolicyError, match=r"'layers.0.hidden' in layers.0.up has 3 units.*strict=True.*replicas=3"):
        NeuronPolicy(replicas=1, strict=True).partition(structure, 8)
    with pytest.raises(PolicyError, match=r"the rule 'layers.0' names it"):
        NeuronPolicy(rules={"layers.0": {"replicas": 1}}).partition(structure, 8)


def test_coverage_one_and_one_worker_are_dense():
    assert not NeuronPolicy(coverage=1.0).partition(convolutions(), 4)
    assert not NeuronPolicy(coverage=1.0).partition(nothing(), 4)
    assert not NeuronPolicy().partition(convolutions(), 1)


def test_nothing_to_partition_says_why():
    with pytest.raises(NothingToPartition, match=r"no axis.*'head.weight' \(it is a graph output\).*Use coverage=1"):
        NeuronPolicy().partition(nothing(), 4)
    with pytest.raises(NothingToPartition, match="1 units are too few"):
        NeuronPolicy().partition(mlp(hidden=1), 4)
    with pytest.raises(NothingToPartition, match="left whole"):
        NeuronPolicy().partition(recurrent(), 4)


def test_residual_axes_need_the_scope():
    stream = Leaf(8, "stream")
    structure = structure_of({"a.w": [stream, Leaf(3)], "b.w": [Leaf(3), stream]}, residual=["stream"])
    with pytest.raises(NothingToPartition, match="scope='all'"):
        NeuronPolicy().partition(structure, 4)
    assert list(NeuronPolicy(scope="all").partition(structure, 4)) == ["stream"]


def test_a_rounded_coverage_is_reported():
    partition = NeuronPolicy(coverage=0.5).partition(mlp(), 5)
    assert any("3 owners, a coverage of 0.6" in note for note in partition.notes)
