"""Designs: exact replicas, equal loads, contiguous slots, few groups, for any number of workers and units."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.errors import PolicyError
from sdp_compile.ownership.owners import Ownership
from sdp_compile.policies import Design, NeuronPolicy, Placement, design, designs
from sdp_compile.policies.placement import grid
from tests.synthetic import convolutions, mlp

workers = st.integers(1, 24)


coverages = st.sampled_from([0.05, 0.1, 0.25, 1 / 3, 0.5, 0.6, 2 / 3, 0.75, 0.9, 1.0])


units = st.integers(1, 70)


def placement(units: int, cells, *, kind="axis", align=1, seed=0, weights=None, family="axis") -> Placement:
    weights = np.ones((units, 2)) if weights is None else weights
    return Placement(family, kind, cells.workers, cells.slots, np.full(units, cells.share), weights, align, seed)


def feasible(cells, units):
    return ceil(cells.slots / units) <= cells.share


@given(workers, coverages, units, st.sampled_from([1, 1, 8]))
def test_cyclic_is_the_contract_word_for_word(workers, coverage, units, align):
    cells = grid(workers, coverage, None, None)
    (owners,) = designs()["cyclic"]([placement(units, cells, align=align)])
    if align == 1:
        K, p = cells.slots, cells.share
        for unit in range(units):
            slot = unit * K // units
            expected = [w for w in range(workers) if slot in {(w - back) % K for back in range(p)}]
            assert list(owners[unit]) == expected
    if feasible(cells, units):
        assert {worker for owned in owners.sets for worker in owned} == set(range(workers))
    assert all(len(owned) == cells.replicas for owned in owners.sets)
    for rank in range(workers):
        assert sum(rank in owned for owned in owners.sets) <= cells.share


@given(workers, coverages, st.integers(1, 12), st.sampled_from(["cyclic", "balanced", "random"]))
def test_equal_loads_where_units_divide_by_the_slots(workers, coverage, multiple, name):
    cells = grid(workers, coverage, None, None)
    count = multiple * cells.slots
    (owners,) = designs()[name]([placement(count, cells)])
    assert len(owners) == count
    loads = owners.loads(np.ones(count), workers)
    assert (loads == count * cells.replicas / workers).all()


@given(workers, coverages, units, st.sampled_from(["cyclic", "balanced", "random"]), st.integers(0, 3))
def test_exact_replicas_and_no_idle_worker(workers, coverage, units, name, seed):
    cells = grid(workers, coverage, None, None)
    if not feasible(cells, units):
        return
    (owners,) = designs()[name]([placement(units, cells, seed=seed)])
    assert {len(owned) for owned in owners.sets} == {cells.replicas}
    assert all(len(owners.owned(rank)) for rank in range(workers))
    assert len(owners.sets) <= cells.slots


@given(units, st.integers(1, 12))
def test_slots_start_at_multiples_of_align(units, align):
    cells = grid(4, 0.25, None, None)
    (owners,) = designs()["cyclic"]([placement(units, cells, align=align)])
    starts = np.cumsum([0] + [count for count, _ in owners.runs])[:-1]
    if ceil(units / align) >= cells.slots:
        assert (starts % align == 0).all()
        assert len(owners.runs) == cells.slots
    for first, second in pairwise(owners.runs):
        assert first[1] != second[1]


def test_random_follows_the_seed_and_the_family_only():
    cells = grid(8, 0.5, None, None)
    tasks = [placement(32, cells, seed=1, family="a"), placement(32, cells, seed=1, family="b")]
    first, second = designs()["random"](tasks), designs()["random"](tasks)
    assert first == second
    assert first[0] != first[1]
    assert set(first[0].sets) == set(first[1].sets)
    assert designs()["random"]([placement(32, cells, seed=2, family="a")])[0] != first[0]


@given(st.integers(2, 12), coverages, st.integers(4, 70))
def test_nested_gives_prefixes_of_the_mean_coverage(workers, coverage, units):
    cells = grid(workers, coverage, None, None)
    (owners,) = designs()["nested"]([placement(units, cells)])
    counts = owners.loads(np.ones(units), workers)
    for rank in range(workers):
        assert owners.owned(rank).tolist() == list(range(int(counts[rank])))
    assert counts[0] == units and counts.min() >= 1
    # Each width is rounded to whole units, and at least one.
    assert abs(counts.mean() / units - cells.replicas / workers) <= 1 / units


@given(
    st.integers(2, 12), coverages, st.integers(1, 70), st.sampled_from([1, 1, 4]), st.sampled_from(["axis", "block"])
)
def test_core_gives_the_first_units_to_all_and_the_others_to_one(workers, coverage, units, align, kind):
    cells = grid(workers, coverage, None, None)
    if not feasible(cells, units):
        return
    (owners,) = designs()["core"]([placement(units, cells, align=align, kind=kind)])
    everyone = tuple(range(workers))
    each = len(everyone) // cells.slots  # of one cell
    sizes = [len(owners[unit]) for unit in range(units)]
    core = sizes.count(workers)
    assert set(sizes) <= {workers, each} and [tuple(owners[unit]) for unit in range(core)] == [everyone] * core
    assert sizes[core:] == [each] * (units - core) or each == workers
    assert all(len(owners.owned(rank)) for rank in range(workers))
    private = owners.loads(np.ones(units), workers) - core
    step = align if units >= align * cells.slots else 1
    assert private.max() - private.min() <= step + (step > 1) * step
    assert core % step == 0 or core == units
    # The core is rounded to whole units.
    assert abs(sum(sizes) / units - cells.replicas) <= (workers - each) * step / units


@pytest.mark.parametrize("name", ["core", "nested", "rolling"])
def test_units_with_shares_of_their_own_are_refused_where_all_are_placed_alike(name):
    cells = grid(4, 0.5, None, None)
    task = replace(placement(6, cells, kind="block"), shares=np.array([2, 2, 2, 2, 2, 4]))
    with pytest.raises(PolicyError, match=f"design='{name}' places all units alike"):
        designs()[name]([task])


def test_private_units_of_two_axes_that_meet_would_have_no_owner():
    with pytest.raises(PolicyError, match=r"design='core'.*another design"):
        NeuronPolicy(axes="all", coverage=0.75, design="core").partition(convolutions(), 4)
    mixed = NeuronPolicy(axes="all", coverage=0.25, rules={"convs.0.weight": {"design": "core"}})
    with pytest.raises(PolicyError, match="replicas="):  # that would not help: other axes lack owners, too
        mixed.partition(convolutions(), 4)


def test_balanced_axes_even_out_over_layers():
    """Three heads over four workers load one worker more in each layer; rotation spreads that over the workers."""
    cells = grid(4, 0.5, None, None)
    tasks = [placement(3, cells, family=f"layer {number}") for number in range(4)]
    cyclic = sum(owners.loads(np.ones(3), 4) for owners in designs()["cyclic"](tasks))
    balanced = sum(owners.loads(np.ones(3), 4) for owners in designs()["balanced"](tasks))
    assert cyclic.max() == 8 and balanced.tolist() == [6, 6, 6, 6]


@pytest.mark.parametrize("count", range(6, 25))
def test_equal_blocks_are_balanced_over_four_workers(count):
    cells = grid(4, 0.5, None, None)
    (owners,) = designs()["balanced"]([placement(count, cells, kind="block")])
    loads = owners.loads(np.ones(count), 4)
    assert loads.max() <= max(1.10 * loads.mean(), ceil(count / 2))
    assert loads.max() - loads.min() <= 1
    assert {len(owned) for owned in owners.sets} == {2}


def test_a_design_is_registered_once():
    with pytest.raises(PolicyError, match="already a design 'cyclic'"):
        design("cyclic")(lambda placements: [])


def test_a_design_of_ones_own_is_used_by_its_name(monkeypatch):
    module = importlib.import_module("sdp_compile.policies.designs")  # the package's name is the function
    monkeypatch.setattr(module, "_DESIGNS", designs())

    @design("alternating")
    def alternating(placements: Sequence[Placement]) -> list[Ownership]:
        return [Ownership.of([[unit % p.workers] for unit in range(p.units)]) for p in placements]

    checked: Design = alternating
    assert designs()["alternating"] is checked
    partition = NeuronPolicy(design="alternating", replicas=1).partition(mlp(hidden=5), 2)
    assert list(partition["layers.0.hidden"]) == [(0,), (1,), (0,), (1,), (0,)]
