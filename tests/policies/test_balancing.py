"""Dealing unequal units to cells: exact owners, nobody idle, loads against brute force."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.policies.balancing import balanced_cells


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
