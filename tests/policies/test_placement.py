"""Slots and cells: the contract's formulas, and what cannot be."""

from __future__ import annotations

from math import floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.errors import PolicyError
from sdp_compile.policies.placement import grid

workers = st.integers(1, 24)


coverages = st.sampled_from([0.05, 0.1, 0.25, 1 / 3, 0.5, 0.6, 2 / 3, 0.75, 0.9, 1.0])


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
