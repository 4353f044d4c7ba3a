"""Plans: element ownership against set arithmetic, pieces, buckets, figures, identity and validation."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from collections.abc import Mapping
from io import StringIO
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sdp_compile.errors import PlanError, PolicyError
from sdp_compile.formatting import size
from sdp_compile.ownership.owners import Ownership
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import AutoPolicy, BlockPolicy, NeuronPolicy, Policy
from sdp_compile.structure.layout import Leaf, Product, Sum
from tests.synthetic import (
    analysis_of,
    attention,
    blocks,
    convolutions,
    mlp,
    nothing,
    recurrent,
    structure_of,
)


class Given(Policy):
    """Returns what it is given, as a policy of a user's own would."""

    owners: Mapping[str, Any]

    def partition(self, structure, workers):
        return self.owners


def plan_for(structure, policy, workers, **capture):
    return make_plan(analysis_of(structure, **capture), policy, workers)


def units_of(layout):
    """The oracle's view of a dimension: for each index the set of (family, unit) that it runs through."""
    if isinstance(layout, Leaf):
        return [{(layout.family, unit)} if layout.family else set() for unit in range(layout.size)]
    if isinstance(layout, Sum):
        return [index for part in layout.parts for index in units_of(part)]
    combined = [set()]
    for factor in layout.factors:
        combined = [outer | inner for outer in combined for inner in units_of(factor)]
    return combined


def oracle_owners(structure, partition, workers, name, block=None):
    """For each element of a tensor the set of workers that own every unit it runs through, computed one by one."""
    owners = np.empty(tuple(layout.size for layout in structure.layouts[name]), dtype=object)
    dims = [units_of(layout) for layout in structure.layouts[name]]
    for element in itertools.product(*(range(len(dim)) for dim in dims)):
        units = set().union(*(dim[index] for dim, index in zip(dims, element, strict=True)))
        members = set(range(workers))
        for family, unit in units:
            if family in partition:
                members &= set(partition[family][unit])
        if block is not None:
            members &= (
                set(partition[block][structure.members[block][name]]) if name in structure.members[block] else members
            )
        owners[element] = frozenset(members)
    return owners


STRUCTURES = {
    "mlp": mlp(hidden=10, width=3, layers=2),
    "attention": attention(),
    "convolutions": convolutions((6, 5, 4)),
    "recurrent": recurrent(7),
    "blocks": blocks((4, 6, 3, 5)),
}


@st.composite
def plans(draw):
    """Any structure, any policy that accepts it, 1 to 6 workers."""
    structure = STRUCTURES[draw(st.sampled_from(sorted(STRUCTURES)))]
    workers = draw(st.integers(1, 6))
    fields = {
        "replicas": draw(st.integers(1, workers)),
        "design": draw(st.sampled_from(["cyclic", "balanced", "random", "nested"])),
        "axes": draw(st.sampled_from(["disjoint", "all"])),
        "align": draw(st.sampled_from([1, 2])),
    }
    level = draw(st.sampled_from([NeuronPolicy, BlockPolicy, AutoPolicy]))
    try:
        return structure, plan_for(structure, level(**fields), workers)
    except PolicyError:
        return structure, plan_for(structure, NeuronPolicy(coverage=1.0), workers)


def owners_by_element(structure, plan, name):
    partition = {family.name: list(plan.owners(family)) for family in plan.families}
    return oracle_owners(structure, partition, plan.workers, name, plan.block_family)


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


@settings(deadline=None, max_examples=40)
@given(plans(), st.sampled_from([40, 200, 10**6]))
def test_buckets_hold_each_shared_gradient_once_in_one_order(case, bucket_bytes):
    structure, plan = case
    everything = plan.buckets(None, bucket_bytes)
    assert [bucket.number for bucket in everything] == list(range(len(everything)))
    reduced = {name: np.zeros(plan.state[name].shape, dtype=int) for name in plan.state}
    for bucket in everything:
        assert bucket.owners in plan.groups
        assert bucket.nbytes == sum(4 * piece.numel for piece in bucket.pieces)
        assert bucket.nbytes <= bucket_bytes or len(bucket.pieces) == 1
        for piece in bucket.pieces:
            assert piece.owners == bucket.owners
            reduced[piece.name][np.ix_(*piece.index)] += 1
    for name in plan.state:
        shared = np.vectorize(lambda members: len(members) > 1, otypes=[bool])(owners_by_element(structure, plan, name))
        assert (reduced[name] == shared).all()
    for rank in range(plan.workers):
        mine = plan.buckets(rank, bucket_bytes)
        assert [bucket.number for bucket in mine] == [b.number for b in everything if rank in b.owners]
    # Pieces become ready in reverse order of first use.
    position = {name: -number for number, name in enumerate(plan.order)}
    lasts = [max(position[piece.name] for piece in bucket.pieces) for bucket in everything]
    assert lasts == sorted(lasts)


@settings(deadline=None, max_examples=40)
@given(plans())
def test_figures_equal_counting_elements(case):
    structure, plan = case
    owners = {name: owners_by_element(structure, plan, name).reshape(-1) for name in plan.state}
    counts = [len(members) for name in owners for members in owners[name]]
    coverage = plan.coverage()
    assert (coverage.min, coverage.max) == (min(counts), max(counts))
    assert coverage.mean == pytest.approx(sum(counts) / len(counts))
    partial = [count for count in counts if count < plan.workers]
    if partial:
        assert coverage.cut.min == min(partial) and coverage.cut.mean == pytest.approx(sum(partial) / len(partial))
    else:
        assert coverage.cut is None
    for rank in range(plan.workers):
        held = {name: sum(rank in members for members in owners[name]) for name in owners}
        memory = plan.memory(rank)
        assert memory.parameters == memory.gradients == 4 * sum(held.values())
        assert memory.optimizer_state == 8 * sum(held.values()) + 4 * sum(count > 0 for count in held.values())
        sent = sum(2 * (len(m) - 1) / len(m) * 4 for name in owners for m in owners[name] if rank in m)
        assert plan.communication(rank).total == pytest.approx(sent)
        assert plan.communication(rank).groups == len(
            {m for name in owners for m in owners[name] if rank in m and len(m) > 1}
        )
    expected_groups = {tuple(sorted(members)) for name in owners for members in owners[name] if len(members) > 1}
    assert plan.groups == tuple(sorted(expected_groups))
    assert plan.memory().parameters == 4 * len(counts)


@settings(deadline=None, max_examples=40)
@given(plans())
def test_spectral_gap_equals_the_averaging_matrix(case):
    """The N x N matrix written out element by element."""
    structure, plan = case
    total, matrix = 0, np.zeros((plan.workers, plan.workers))
    for name in plan.state:
        for members in owners_by_element(structure, plan, name).reshape(-1):
            if len(members) == plan.workers:
                continue
            step = np.eye(plan.workers)
            step[np.ix_(sorted(members), sorted(members))] = 1 / len(members)
            total, matrix = total + 1, matrix + step
    expected = 1.0 if not total else 1 - np.sort(np.linalg.eigvalsh(matrix / total))[-2]
    assert plan.spectral_gap() == pytest.approx(expected, abs=1e-9)


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
    with pytest.raises(PlanError, match="This is no plan"):
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


def test_names_aliases_and_ranks():
    structure = mlp()
    plan = plan_for(structure, NeuronPolicy(), 4, aliases={"tied.weight": "layers.0.up.weight"})
    assert torch.equal(plan.mask("tied.weight", 1), plan.mask("layers.0.up.weight", 1))
    with pytest.raises(
        PlanError, match=r"no parameter or buffer 'layers.0.up.wight'.*Did you mean 'layers.0.up.weight'"
    ):
        plan.mask("layers.0.up.wight", 0)
    with pytest.raises(PlanError, match=r"no worker 4.*0 to 3"):
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


def test_buffers_follow_their_axis_but_count_apart():
    structure = structure_of({"bn.weight": [Leaf(8, "c")], "bn.running_mean": [Leaf(8, "c")], "bn.count": []})
    plan = plan_for(structure, NeuronPolicy(), 4, buffers=["bn.running_mean", "bn.count"])
    assert plan.local_shape("bn.running_mean", 0) == (4,) and plan.local_shape("bn.count", 0) == ()
    assert plan.mask("bn.count", 2).item() is True
    assert plan.pieces("bn.count")[0].owners == (0, 1, 2, 3)
    memory = plan.memory(0)
    assert (memory.parameters, memory.buffers, memory.optimizer_state) == (16, 20, 36)
    assert all(piece.name == "bn.weight" for bucket in plan.buckets() for piece in bucket.pieces)


def test_flops_scale_with_the_kept_share_and_vanish_with_blocks():
    structure = attention()
    plan = plan_for(structure, NeuronPolicy(), 4)
    assert plan.flops() == sum(term.flops for term in structure.flops)
    assert plan.flops(0) == pytest.approx(plan.flops() / 2)
    structure = blocks((4, 4, 4, 4))
    by_blocks = plan_for(structure, BlockPolicy(), 4)
    costs = structure.by_name["blocks"].unit_flops
    for rank in range(4):
        assert by_blocks.flops(rank) == by_blocks.flops() - sum(costs[unit] for unit in by_blocks.dropped_blocks(rank))


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


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ({"heds": [[0]]}, r"family 'heds', which the model does not have. Did you mean 'heads'"),
        ({"heads": [[0], [1]]}, r"'heads' in attention.qkv has 4 units, the partition gives owners for 2"),
        ({"heads": [[0], [1], [], [0]]}, r"'heads'.*unit 2 has no owner"),
        ({"heads": [[0], [1], [2], [0]]}, r"'heads'.*unit 2 is given to worker 2; there are workers 0 to 1"),
        ({"heads": [[0], [1], [-1], [0]]}, r"unit 2 is given to worker -1"),
        ({"heads": [[0]] * 4}, r"'heads'.*worker 1 owns none of the 4 units"),
        ({"heads": [[0.5]] * 4}, r"'heads'.*must be a collection of worker numbers"),
        ({"heads": [[True]] * 4}, r"'heads'.*must be a collection of worker numbers"),
        ({"heads": 3}, r"'heads'.*must be a collection of worker numbers"),
        (
            {"heads": [[0], [1], [0], [1]], "value": [[0], [1], [0]]},
            r"'attention.qkv.weight'.*'heads'.*'value'.*no owner",
        ),
    ],
)
def test_partitions_of_custom_policies_are_validated(owners, message):
    with pytest.raises(PolicyError, match=message):
        plan_for(attention(), Given(owners=owners), 2)


def test_a_custom_partition_need_not_be_canonical():
    plan = plan_for(attention(), Given(owners={"heads": [{1, 0}, (1,), range(2), [0, 0]]}), 2)
    assert list(plan.owners("heads")) == [(0, 1), (1,), (0, 1), (0,)]
    assert plan.families[0].replicas == 1 and plan.policy["policy"] == "Given"


def test_policies_must_return_a_mapping():
    class Wrong(NeuronPolicy):
        def partition(self, structure, workers):
            return [1]

    with pytest.raises(PolicyError, match="returned list"):
        plan_for(mlp(), Wrong(), 2)


def test_a_parameter_belongs_to_one_level():
    halves = [[0], [1]]
    owners = {"blocks": halves * 2, "blocks.0.hidden": halves * 2}
    with pytest.raises(PolicyError, match=r"'blocks.0.up' is cut by the axis 'blocks.0.hidden'.*one level only"):
        plan_for(blocks((4, 4, 4, 4)), Given(owners=owners), 2)
    with pytest.raises(PolicyError, match="'blocks' and 'layers' together"):
        plan_for(blocks((4, 4, 4, 4)), Given(owners={"blocks": halves * 2, "layers": halves}), 2)


def test_reports_and_findings():
    plan = plan_for(attention(), NeuronPolicy(), 4)
    text = str(plan.report())
    for part in (
        "heads",
        "attention.qkv",
        "owners per cut element",
        size(plan.memory(0).parameters),
        "value: left whole",
    ):
        assert part in text
    console = Console(file=StringIO(), width=100)
    console.print(plan.report())
    assert "heads" in console.file.getvalue()
    frozen = plan_for(nothing(), NeuronPolicy(coverage=1.0), 2)
    assert "it is a graph output" in str(frozen.report())
    assert [str(finding) for finding in frozen.diagnose()] == [
        "note: Nothing is cut: every worker trains the whole model."
    ]
    apart = plan_for(attention(), Given(owners={"heads": [(0, 1), (0, 1), (2, 3), (2, 3)]}), 4)
    assert apart.spectral_gap() == 0 and any("share no cut parameter" in finding.text for finding in apart.diagnose())
    uneven = plan_for(attention(), Given(owners={"heads": [(0, 1), (0, 1), (0, 1), (0, 2, 3)]}), 4)
    texts = [finding.text for finding in uneven.diagnose()]
    assert any("times the mean memory" in text for text in texts) and any(
        "all of the dense model's" in text for text in texts
    )


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


@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=20), st.integers(0, 5))
def test_ownership_is_the_sequence_it_was_made_of(sets, rank):
    owners = Ownership.of(sets)
    assert list(owners) == [tuple(sorted(members)) for members in sets] == [owners[unit] for unit in range(len(sets))]
    assert owners[-1] == tuple(sorted(sets[-1])) and list(owners[2:5]) == list(owners)[2:5]
    assert owners.owned(rank).tolist() == [unit for unit, members in enumerate(sets) if rank in members]
    assert sum(units for units, _ in owners.runs) == len(owners) == len(sets)
    assert Ownership.from_runs(owners.runs) == owners and hash(Ownership.of(list(sets))) == hash(owners)
    assert pickle.loads(pickle.dumps(owners)) == owners
    weights = [2 * unit + 1 for unit in range(len(sets))]
    expected = [
        sum(weight for weight, members in zip(weights, sets, strict=True) if worker in members) for worker in range(6)
    ]
    assert owners.loads(weights, 6).tolist() == expected
