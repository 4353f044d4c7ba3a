"""Coverage and spectral gap, against counting and the averaging matrix of all workers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.ownership import mixing
from sdp_compile.ownership.mixing import Coverage, coverage, spectral_gap
from sdp_compile.ownership.owners import OwnerSet

WORKERS = 5
elements = st.dictionaries(
    st.sets(st.integers(0, WORKERS - 1), min_size=1).map(lambda members: tuple(sorted(members))),
    st.integers(1, 9),
    max_size=6,
)


def gap_of_matrix(elements: dict[OwnerSet, int], workers: int) -> float:
    """1 minus the second eigenvalue of the N x N matrix, added up over the elements."""
    matrix = np.zeros((workers, workers))
    for owners, count in elements.items():
        step = np.eye(workers)
        step[np.ix_(owners, owners)] = 1 / len(owners)
        matrix += count * step
    return float(1 - np.sort(np.linalg.eigvalsh(matrix / sum(elements.values())))[-2])


@given(elements)
def test_spectral_gap_equals_the_averaging_matrix(elements: dict[OwnerSet, int]) -> None:
    expected = gap_of_matrix(elements, WORKERS) if elements else 1.0
    assert spectral_gap(elements, WORKERS) == pytest.approx(expected, abs=1e-9)


def test_spectral_gap_at_the_ends() -> None:
    assert spectral_gap({(0, 1, 2): 7}, 3) == pytest.approx(1.0)
    assert spectral_gap({(0, 1): 3, (2, 3): 5}, 4) == pytest.approx(0.0), "two groups that share nothing"
    assert spectral_gap({(0,): 2}, 1) == 1.0


def test_many_worker_classes_take_the_iterative_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = {tuple(sorted((worker, (worker + 1) % 30))): 1 for worker in range(30)}
    expected = gap_of_matrix(ring, 30)
    monkeypatch.setattr(mixing, "DENSE_EIGENSOLVER_LIMIT", 10)
    assert spectral_gap(ring, 30) == pytest.approx(expected, abs=1e-9)


@given(elements)
def test_coverage_counts_owners_of_elements(elements: dict[OwnerSet, int]) -> None:
    cut = {owners: count for owners, count in elements.items() if len(owners) < WORKERS}
    found = coverage(elements, cut)
    for part, figures in ((elements, found), (cut, found.cut)):
        counts = [len(owners) for owners, count in part.items() for _ in range(count)]
        if not counts:
            assert figures in (None, Coverage(0, 0.0, 0))
            continue
        assert figures is not None and (figures.min, figures.max) == (min(counts), max(counts))
        assert figures.mean == pytest.approx(sum(counts) / len(counts))
