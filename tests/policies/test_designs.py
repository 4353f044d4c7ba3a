"""Designs: exact replicas, equal loads, contiguous slots, few groups, for any number of workers and units."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.errors import PolicyError
from sdp_compile.policies.balancing import balanced_cells
from sdp_compile.policies.designs import design, designs
from sdp_compile.policies.placement import Placement, grid

workers = st.integers(1, 24)
coverages = st.sampled_from([0.05, 0.1, 0.25, 1 / 3, 0.5, 0.6, 2 / 3, 0.75, 0.9, 1.0])
units = st.integers(1, 70)


def placement(units: int, cells, *, kind="axis", align=1, seed=0, weights=None, family="axis") -> Placement:
    weights = np.ones((units, 2)) if weights is None else weights
    return Placement(family, kind, cells.workers, cells.slots, np.full(units, cells.share), weights, align, seed)


def feasible(cells, units):
    return ceil(cells.slots / units) <= cells.share


@given(workers, coverages)
def test_slots_follow_the_contract(workers, coverage):
    cells = grid(workers, coverage, None, None)
    assert cells.replicas == min(workers, max(1, floor(coverage * workers + 0.5)))
    divisors = [k for k in range(1, 9) if workers % k == 0 and abs(k * coverage - round(k * coverage)) < 1e-9]
    assert cells.slots == (max(divisors) if divisors else workers)
    assert cells.share * workers == cells.replicas * cells.slots


@pytest.mark.parametrize(
    ("workers", "coverage", "expected"),
    [
        (4, 0.5, (4, 2)),
        (8, 0.5, (8, 4)),
        (4096, 0.5, (8, 4)),
        (10, 0.5, (2, 1)),
        (5, 0.5, (5, 3)),
        (6, 0.5, (6, 3)),
        (12, 1 / 3, (6, 2)),
        (16, 0.25, (8, 2)),
        (3, 0.5, (3, 2)),
        (1, 0.5, (1, 1)),
        (7, 0.1, (7, 1)),
        (9, 0.5, (9, 5)),
    ],
)
def test_slots_of_common_cases(workers, coverage, expected):
    cells = grid(workers, coverage, None, None)
    assert (cells.slots, cells.share) == expected


def test_replicas_and_slots_that_cannot_be():
    with pytest.raises(PolicyError, match="replicas=5 is more than the 4 workers"):
        grid(4, None, 5, None)
    with pytest.raises(PolicyError, match=r"slots=3 .* Possible: 2, 4, 8"):
        grid(8, 0.5, None, 3)
    assert grid(8, 0.5, None, 2).share == 1
    assert grid(6, None, 3, None) == grid(6, 0.5, None, None)


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


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 8), st.integers(1, 8), st.lists(st.floats(0.1, 10), min_size=1, max_size=24), st.randoms())
def test_blocks_have_exact_owners_and_nobody_is_idle(cells, share, costs, random):
    share = min(share, cells)
    if len(costs) * share < cells:
        return
    weights = np.array([[cost, cost * random.uniform(0.5, 2)] for cost in costs])
    shares = np.full(len(costs), share)
    owned = balanced_cells(weights, shares, cells)
    assert (owned.sum(axis=1) == share).all() and owned.any(axis=0).all()
    assert (owned == balanced_cells(weights, shares, cells)).all()
    loads = owned.T @ (weights / weights.sum(axis=0))
    # No worse than the greedy guarantee: the mean plus one largest unit, in either measure, each scaled alike.
    assert loads.max() <= 2 * (share / cells + (weights / weights.sum(axis=0)).max())


def test_blocks_are_as_balanced_as_the_best_of_all_assignments():
    """Against brute force over all ways to give five unequal blocks to two of four workers each."""
    from itertools import combinations, product

    costs = np.array([5.0, 4.0, 3.0, 3.0, 1.0])
    pairs = list(combinations(range(4), 2))
    best = min(
        max(sum(cost for cost, pair in zip(costs, choice, strict=True) if worker in pair) for worker in range(4))
        for choice in product(pairs, repeat=5)
    )
    owned = balanced_cells(np.stack([costs, costs], axis=1), np.full(5, 2), 4)
    assert (owned.T @ costs).max() == best


def test_blocks_connect_the_workers_where_that_is_free():
    """Sizes 8, 6, 4, 4 balance as {8, 4}, {8, 4}, {6, 4}, {6, 4}: as two groups that share nothing, or as a cycle."""
    costs = np.array([8.0, 6.0, 4.0, 4.0])
    owned = balanced_cells(np.stack([costs, costs], axis=1), np.full(4, 2), 4).astype(int)
    reachable = np.linalg.matrix_power(owned.T @ owned, 4)
    assert (reachable > 0).all()


def test_a_design_is_registered_once():
    with pytest.raises(PolicyError, match="already a design 'cyclic'"):
        design("cyclic")(lambda placements: [])
