"""Plans: masks, slices and pieces against set arithmetic, names, ranks, and what they cost at scale."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sdp_compile.errors import PlanError
from sdp_compile.policies import BlockPolicy, NeuronPolicy
from sdp_compile.structure.layout import Leaf, Product
from tests.planning.plans import owners_by_element, plan_for, plans
from tests.synthetic import attention, blocks, convolutions, mlp


@settings(deadline=None, max_examples=80)
@given(plans())
def test_masks_pieces_and_shapes_equal_set_arithmetic(case):
    structure, plan = case
    for name in structure.layouts:
        oracle = owners_by_element(structure, plan, name)
        for rank in range(plan.workers):
            expected = np.vectorize(lambda members, rank=rank: rank in members, otypes=[bool])(oracle)
            mask = plan.mask(name, rank)
            assert mask.dtype == torch.bool and (mask.numpy() == expected).all()
            kept = plan.kept(name, rank)
            if kept is None:
                assert not expected.any() and plan.local_shape(name, rank) is None
                continue
            rebuilt = np.zeros(oracle.shape, dtype=bool)
            rebuilt[np.ix_(*kept)] = True
            assert (rebuilt == expected).all()
            assert plan.local_shape(name, rank) == tuple(len(index) for index in kept)
            # theta[mask] in ascending order is the slice.
            theta = np.arange(oracle.size).reshape(oracle.shape)
            assert (theta[expected].reshape(plan.local_shape(name, rank)) == theta[np.ix_(*kept)]).all()
        seen = np.zeros(oracle.shape, dtype=int)
        for piece in plan.pieces(name):
            assert all((np.diff(index) > 0).all() for index in piece.index)
            region = np.ix_(*piece.index)
            seen[region] += 1
            assert {tuple(sorted(members)) for members in oracle[region].reshape(-1)} == {piece.owners}
            for rank in piece.owners:
                local = np.arange(oracle.size).reshape(oracle.shape)[np.ix_(*plan.kept(name, rank))]
                there = local[np.ix_(*plan.local_index(piece, rank))]
                assert (there == np.arange(oracle.size).reshape(oracle.shape)[region]).all()
        assert (seen == 1).all()
        assert all(members for members in oracle.reshape(-1)), "every element has an owner"


def test_names_aliases_and_ranks():
    structure = mlp()
    plan = plan_for(structure, NeuronPolicy(), 4, aliases={"tied.weight": "layers.0.up.weight"})
    assert torch.equal(plan.mask("tied.weight", 1), plan.mask("layers.0.up.weight", 1))
    with pytest.raises(
        PlanError, match=r"no parameter or buffer 'layers.0.up.wight'.*Did you mean 'layers.0.up.weight'"
    ):
        plan.mask("layers.0.up.wight", 0)
    with pytest.raises(PlanError, match="rank must be from 0 to 3 for this plan, got 4"):
        plan.mask("layers.0.up.weight", 4)
    with pytest.raises(PlanError, match=r"family 'layers.0.hiden'.*Did you mean 'layers.0.hidden'"):
        plan.owners("layers.0.hiden")


def test_units_and_dropped_blocks():
    plan = plan_for(attention(), NeuronPolicy(), 4)
    assert plan.kept_units(0) == {"heads": 2} and plan.owned("heads", 3).tolist() == [2, 3]
    assert plan.block_family is None and plan.dropped_blocks(0) == frozenset()
    assert plan.local_shape("attention.qkv.weight", 0) == (18, 12)
    assert plan.layouts["attention.out.weight"][1] == Product((Leaf(4, "heads"), Leaf(3)))
    by_blocks = plan_for(blocks((4, 4, 4, 4)), BlockPolicy(), 4)
    assert by_blocks.block_family == "blocks" and by_blocks.kept_units(0) == {}
    for rank in range(4):
        dropped = by_blocks.dropped_blocks(rank)
        assert len(dropped) == 2
        assert {by_blocks.local_shape(f"blocks.{unit}.up", rank) is None for unit in dropped} == {True}


def test_data_parallelism_is_the_plan_of_full_coverage():
    plan = plan_for(convolutions(), NeuronPolicy(coverage=1.0), 4)
    assert not plan.families and plan.groups == ((0, 1, 2, 3),)
    for rank in range(4):
        assert plan.memory(rank) == plan.memory()
        assert plan.communication(rank).total == plan.communication(rank).dense == 1.5 * plan.memory().parameters
    assert plan.spectral_gap() == 1.0
    assert "every worker trains the whole model" in str(plan.report())
    assert plan_for(convolutions(), NeuronPolicy(), 1).groups == ()


def test_rescales_are_the_inverse_coverage_of_each_owned_unit():
    assert plan_for(mlp(), NeuronPolicy(), 4).rescales(0) == ()
    (rescale,) = plan_for(mlp(), NeuronPolicy(rescale=True, replicas=1), 4).rescales(1)
    assert rescale.units == (4, 5, 6, 7) and rescale.factors == (4.0,) * 4


def test_plans_are_copied_and_pickled_without_their_caches():
    plan = plan_for(mlp(hidden=4096), NeuronPolicy(), 4)
    before = len(pickle.dumps(plan))
    plan.buckets(), plan.mask("layers.0.up.weight", 0)
    assert len(pickle.dumps(plan)) == before < 200_000
    assert copy.deepcopy(plan) is plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert "layers.0.hidden (4096)" in repr(plan)


@pytest.mark.timeout(120)
def test_thousands_of_workers():
    """A rank of 4,096 is in few groups, and figures are the same as its cell's."""
    plan = plan_for(mlp(hidden=11008, width=64, layers=20), NeuronPolicy(), 4096)
    assert len(plan.groups) == 9 and {len(owners) for owners in plan.groups} == {2048, 4096}
    assert len(plan.worker_classes()) == 8
    assert plan.communication(3).groups == 5
    assert plan.memory(3) == plan.memory(3 + 8 * 100)
    assert len(plan.to_json()) < 200_000
    assert 0 < plan.spectral_gap() < 1
    assert plan.local_shape("layers.7.up.weight", 17) == (5504, 64)
