"""BlockPolicy: every block has its owners, every worker a block, and what the policy refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.errors import NothingToPartition, PolicyError
from sdp_compile.policies import BlockPolicy
from tests.synthetic import blocks, mlp


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.sampled_from(["balanced", "cyclic", "random"]),
)
def test_every_block_has_its_owners_and_every_worker_a_block(workers, replicas, sizes, design):
    replicas = min(replicas, workers)
    structure = blocks(sizes)
    try:
        partition = BlockPolicy(replicas=replicas, design=design).partition(structure, workers)
    except NothingToPartition:
        assert len(sizes) == 1
        return
    if replicas == workers:
        assert not partition
        return
    (owners,) = partition.values()
    counts = {len(members) for members in owners}
    assert len(counts) == 1 and min(counts) >= replicas
    if len(sizes) >= workers:
        assert counts == {replicas}
    assert all(len(owners.owned(rank)) for rank in range(workers))


def test_unequal_blocks_are_balanced():
    structure = blocks((1, 2, 3, 4, 5, 6, 7, 8, 9, 10))
    (owners,) = BlockPolicy().partition(structure, 4).values()
    family = structure.by_name["blocks"]
    loads = owners.loads(family.unit_flops, 4)
    assert loads.max() <= 1.02 * loads.mean()


def test_granularity_picks_the_family():
    assert list(BlockPolicy(granularity="layer").partition(blocks((4, 4, 4, 4)), 2)) == ["layers"]
    assert list(BlockPolicy().partition(blocks((4, 4, 4, 4)), 2)) == ["blocks"]


def test_models_without_blocks_are_refused():
    with pytest.raises(NothingToPartition, match=r"no residual blocks.*NeuronPolicy"):
        BlockPolicy().partition(mlp(), 4)
    assert not BlockPolicy(coverage=1.0).partition(mlp(), 4)


def test_too_few_blocks():
    partition = BlockPolicy(replicas=1).partition(blocks((4, 4)), 4)
    assert [len(owners) for owners in partition["blocks"]] == [2, 2]
    assert any("2 blocks are too few" in note for note in partition.notes)
    with pytest.raises(PolicyError, match="replicas=2"):
        BlockPolicy(replicas=1, strict=True).partition(blocks((4, 4)), 4)
    with pytest.raises(NothingToPartition, match="All 1 blocks"):
        BlockPolicy().partition(blocks((4,)), 4)


def test_rules_give_single_blocks_their_own_replicas():
    policy = BlockPolicy(rules={"blocks.0": "shared", "blocks.1": {"replicas": 1}})
    (owners,) = policy.partition(blocks((4, 4, 4, 4, 4, 4)), 4).values()
    assert [len(members) for members in owners] == [4, 1, 2, 2, 2, 2]
    assert np.ptp(owners.loads([1] * 6, 4)) <= 1
    with pytest.raises(PolicyError, match="for blocks a rule can change coverage or replicas only"):
        BlockPolicy(rules={"blocks.1": {"align": 2}}).partition(blocks((4, 4, 4, 4)), 4)


def test_a_rule_that_changes_nothing_is_none():
    structure = blocks((4, 4, 4, 4))
    assert BlockPolicy(rules={"blocks.1": {}}).partition(structure, 4) == BlockPolicy().partition(structure, 4)
