"""The choice of axes against brute force over all subsets."""

from __future__ import annotations

import time
from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.policies.selection import Candidate, choose_disjoint


def brute_force(candidates, conflicts):
    """Most weight, then least sum of outer, then least sum of name positions; axes that save nothing are left out."""
    position = {candidate.name: number for number, candidate in enumerate(sorted(candidates, key=lambda c: c.name))}
    useful = [c for c in candidates if c.weight > 0 and frozenset([c.name]) not in conflicts]
    subsets = chain.from_iterable(combinations(useful, size) for size in range(len(useful) + 1))
    free = [
        subset
        for subset in subsets
        if not any(frozenset((a.name, b.name)) in conflicts for a, b in combinations(subset, 2))
    ]
    best = min(
        free,
        key=lambda s: (-sum(c.weight for c in s), sum(c.outer for c in s), sum(position[c.name] for c in s)),
    )
    return best


@st.composite
def problems(draw):
    count = draw(st.integers(1, 8))
    names = [f"axis.{number}" for number in range(count)]
    candidates = [Candidate(name, draw(st.integers(0, 6)), draw(st.integers(0, 2))) for name in names]
    pairs = [frozenset(pair) for pair in combinations(names, 2)] + [frozenset([name]) for name in names]
    conflicts = frozenset(pair for pair in pairs if draw(st.booleans()))
    return candidates, conflicts


@settings(max_examples=150, deadline=None)
@given(problems())
def test_choice_is_a_maximum_weight_independent_set(problem):
    candidates, conflicts = problem
    weight = {candidate.name: candidate.weight for candidate in candidates}
    chosen = choose_disjoint(candidates, conflicts)
    assert not any(frozenset(pair) in conflicts for pair in combinations(sorted(chosen), 2))
    assert not any(frozenset([name]) in conflicts for name in chosen)
    best = brute_force(candidates, conflicts)
    assert sum(weight[name] for name in chosen) == sum(candidate.weight for candidate in best)
    outer = {candidate.name: candidate.outer for candidate in candidates}
    assert sum(outer[name] for name in chosen) == sum(candidate.outer for candidate in best)


def test_ties_go_to_the_outermost_axis_then_by_name():
    conflict = frozenset([frozenset(("a", "b"))])
    assert choose_disjoint([Candidate("a", 5, 1), Candidate("b", 5, 0)], conflict) == {"b"}
    assert choose_disjoint([Candidate("b", 5, 0), Candidate("a", 5, 0)], conflict) == {"a"}
    assert choose_disjoint([Candidate("a", 5, 0), Candidate("b", 6, 1)], conflict) == {"b"}


@pytest.mark.timeout(120)
def test_five_hundred_axes_are_quick():
    """A chain of 500 convolutions, each conflicting with the next three."""
    names = [f"channels.{number:03}" for number in range(500)]
    weights = [(number * 7919) % 97 + 1 for number in range(500)]
    candidates = [Candidate(name, weight * 2**20, 0) for name, weight in zip(names, weights, strict=True)]
    conflicts = {frozenset((names[i], names[j])) for i in range(500) for j in range(i + 1, min(500, i + 4))}
    before = time.perf_counter()
    chosen = choose_disjoint(candidates, conflicts)
    assert time.perf_counter() - before < 30
    # The optimum by dynamic programming over the chain: the best up to i, when i is taken the last taken is before i-3.
    best = [0] * 501
    for number in range(500):
        best[number + 1] = max(best[number], best[max(0, number - 3)] + weights[number])
    assert sum(weights[names.index(name)] for name in chosen) == best[500]
