"""Owners of units in compact form, against plain sets."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.ownership.owners import (
    OwnerSets,
    Ownership,
    intersect,
    is_member,
    owner_set,
    refresh_sources,
    runs_of,
    worker_classes,
)

WORKERS = 6
members = st.sets(st.integers(0, WORKERS - 1), min_size=1)


@given(st.lists(members, min_size=1, max_size=20), st.integers(0, WORKERS - 1))
def test_ownership_is_the_sequence_it_was_made_of(sets: list[set[int]], rank: int) -> None:
    owners = Ownership.of(sets)
    assert list(owners) == [tuple(sorted(members)) for members in sets] == [owners[unit] for unit in range(len(sets))]
    assert owners[-1] == tuple(sorted(sets[-1])) and list(owners[2:5]) == list(owners)[2:5]
    assert owners.owned(rank).tolist() == [unit for unit, members in enumerate(sets) if rank in members]
    assert owners.holds(rank).tolist() == [rank in members for members in sets]
    assert owners.replicas == min(map(len, sets))
    assert sum(units for units, _ in owners.runs) == len(owners) == len(sets)


@given(st.lists(members, min_size=1, max_size=20))
def test_equal_ownership_is_one_however_it_was_made(sets: list[set[int]]) -> None:
    owners = Ownership.of(sets)
    for other in (Ownership.of(list(sets)), Ownership.from_runs(owners.runs), pickle.loads(pickle.dumps(owners))):
        assert other == owners and hash(other) == hash(owners)
    assert Ownership.of(owners) is owners
    assert Ownership.of([*sets, {0}]) != owners
    assert len(owners.sets) == len(set(map(frozenset, sets))), "each owner set is stored once"
    assert eval(repr(owners), {"Ownership": Ownership}) == owners


@given(st.lists(st.tuples(members, st.integers(0, 9)), min_size=1, max_size=20))
def test_loads_are_the_sums_of_what_each_worker_owns(units: list[tuple[set[int], int]]) -> None:
    owners = Ownership.of([members for members, _ in units])
    expected = [sum(weight for members, weight in units if worker in members) for worker in range(WORKERS)]
    assert owners.loads([weight for _, weight in units], WORKERS).tolist() == expected


@given(st.lists(st.integers(0, 9)), st.integers(0, 9))
def test_owner_sets_are_ascending_and_without_repetition(workers: list[int], rank: int) -> None:
    owners = owner_set(workers)
    assert owners == tuple(sorted(set(workers)))
    assert is_member(rank, owners) is (rank in workers)


@pytest.mark.parametrize("workers", [[0.5], ["0"], [None], [True]])
def test_a_worker_is_an_integer(workers: Any) -> None:
    with pytest.raises(TypeError):
        owner_set(workers)


def test_integers_of_numpy_are_workers() -> None:
    assert owner_set(np.array([2, 0])) == (0, 2) and type(owner_set(np.array([2]))[0]) is int


@given(members, members)
def test_intersection(first: set[int], second: set[int]) -> None:
    assert intersect(owner_set(first), owner_set(second)) == tuple(sorted(first & second))


@given(st.lists(members))
def test_sets_are_numbered_as_they_appear(sets: list[set[int]]) -> None:
    known = OwnerSets()
    numbers = [known.number(owner_set(members)) for members in sets]
    assert known.sets == list(dict.fromkeys(owner_set(members) for members in sets))
    assert [known.sets[number] for number in numbers] == [owner_set(members) for members in sets]


@given(st.integers(0, 100), members)
def test_owners_take_turns_in_sending_a_piece_to_the_others(number: int, owning: set[int]) -> None:
    owners, everyone = owner_set(owning), tuple(range(WORKERS))
    sources = refresh_sources(number, owners, everyone)
    assert set(sources) == set(everyone) - set(owners) and set(sources.values()) <= set(owners)
    counts = Counter(sources.values())
    assert max(counts.values(), default=0) - min((counts[owner] for owner in owners), default=0) <= 1


def test_another_owner_begins_with_each_piece() -> None:
    assert [refresh_sources(number, (0, 2, 3), (0, 1, 2, 3))[1] for number in range(4)] == [0, 2, 3, 0]


def test_only_owners_in_the_group_send() -> None:
    assert [refresh_sources(number, (0, 2, 3, 5), (1, 2, 4, 5)) for number in range(2)] == [{1: 2, 4: 5}, {1: 5, 4: 2}]


@given(st.lists(st.integers(0, 2), max_size=20))
def test_runs(labels: list[int]) -> None:
    runs = runs_of(np.array(labels, dtype=np.int64))
    assert [label for length, label in runs for _ in range(length)] == labels
    assert all(one[1] != other[1] for one, other in pairwise(runs))


@given(st.lists(members))
def test_workers_of_a_class_are_in_the_same_sets(sets: list[set[int]]) -> None:
    classes = worker_classes(map(owner_set, sets), WORKERS)
    assert sorted(worker for members in classes for worker in members) == list(range(WORKERS))
    alike = {worker: number for number, members in enumerate(classes) for worker in members}
    for one in range(WORKERS):
        for other in range(WORKERS):
            assert (alike[one] == alike[other]) is all((one in members) == (other in members) for members in sets)
