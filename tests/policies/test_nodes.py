"""Nodes: the workers of a node share a cell where there are nodes for all cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.errors import PolicyError
from sdp_compile.policies import AutoPolicy, BlockPolicy, NeuronPolicy, Placement, Policy, designs
from sdp_compile.policies.nodes import checked_node_size
from sdp_compile.policies.placement import grid
from sdp_compile.structure.families import Structure
from tests.synthetic import blocks, mlp

counts = st.integers(1, 24)
coverages = st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.75])


def on_nodes(workers: int, node_size: int, coverage: float, units: int, weights: np.ndarray | None = None) -> Placement:
    cells = grid(workers, coverage, None, None)
    shares = np.full(units, max(cells.share, cells.needed_share(units)))
    weights = np.ones((units, 2)) if weights is None else weights
    return Placement("family", "axis", workers, cells.slots, shares, weights, node_size=node_size)


@settings(deadline=None)
@given(counts, st.integers(1, 8), coverages, st.integers(8, 40))
def test_a_workers_class_is_the_contract_word_for_word(nodes, node_size, coverage, units):
    """Its class is w mod K, or with at least K nodes (a multiple of K) its node's number mod K."""
    workers = nodes * node_size
    task = on_nodes(workers, node_size, coverage, units)
    K, p = task.slots, int(task.shares[0])
    by_node = nodes >= K and nodes % K == 0
    (owners,) = designs()["cyclic"]([task])
    for unit in range(units):
        slot = unit * K // units
        classes = [(worker // node_size if by_node else worker) % K for worker in range(workers)]
        assert list(owners[unit]) == [
            w for w in range(workers) if slot in {(classes[w] - back) % K for back in range(p)}
        ]


@settings(deadline=None)
@given(counts, st.integers(1, 8), coverages, st.integers(8, 40), st.sampled_from(sorted(designs())))
def test_nodes_only_renumber_the_workers(nodes, node_size, coverage, units, name):
    """Whatever the design, the plan is that of one node for workers in another order; balance is not lost."""
    workers = nodes * node_size
    generator = np.random.default_rng(units)
    layers = [generator.integers(1, 9, (units, 2)).astype(float) for _ in range(3)]
    one, several = (
        designs()[name]([on_nodes(workers, size, coverage, units, weights) for weights in layers])
        for size in (workers, node_size)
    )
    K = grid(workers, coverage, None, None).slots
    stride = node_size if nodes % K == 0 else 1
    by_cell = (sorted(range(workers), key=lambda worker: (worker // step % K, worker)) for step in (1, stride))
    renumbered = dict(zip(*by_cell, strict=True))
    for before, after in zip(one, several, strict=True):
        assert [sorted(renumbered[worker] for worker in owners) for owners in before] == list(map(list, after))


def test_a_node_size_that_does_not_divide_says_what_would_do():
    assert [checked_node_size(size, 12) for size in (None, 1, 4, 12)] == [12, 1, 4, 12]
    for size, near in ((8, "6 or 12"), (5, "4 or 6"), (13, "12"), (24, "12")):
        with pytest.raises(PolicyError, match=f"node_size={size} does not divide the 12 workers.* Use {near}, or"):
            checked_node_size(size, 12)


@pytest.mark.parametrize(
    ("policy", "structure"),
    [
        (NeuronPolicy(node_size=3, slots=2), mlp(hidden=12)),
        (NeuronPolicy(node_size=3, slots=2, design="balanced"), mlp(hidden=12)),
        (BlockPolicy(node_size=3, slots=2), blocks((4, 6, 3, 5))),
        (AutoPolicy(node_size=3, slots=2), mlp(hidden=12)),
    ],
)
def test_policies_place_whole_nodes(policy: Policy, structure: Structure):
    for owners in policy.partition(structure, 12).values():
        for members in owners.sets:
            nodes = [{worker in members for worker in range(first, first + 3)} for first in (0, 3, 6, 9)]
            assert sorted(map(sorted, nodes)) == [[False], [False], [True], [True]]
    with pytest.raises(PolicyError, match=r"node_size=3 does not divide the 8 workers.* Use 2 or 4"):
        policy.partition(structure, 8)
