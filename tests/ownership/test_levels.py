"""Levels of a reduction: disjoint groups that own in common what they add up, for any owner sets and nodes."""

from __future__ import annotations

import time
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.ownership.levels import Levels, make_levels
from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.policies.nodes import stride_of
from sdp_compile.policies.placement import workers_of


def cyclic(workers: int, slots: int, share: int, node_size: int) -> list[OwnerSet]:
    stride = stride_of(workers, slots, node_size)
    cells = [frozenset((slot + step) % slots for step in range(share)) for slot in range(slots)]
    return [workers_of(some, slots, workers, stride) for some in cells]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[OwnerSet], int, int]:
    """Owner sets as policies make them (whole cells), or any at all, with workers and the size of a node."""
    workers = draw(st.integers(1, 24))
    divisors = [count for count in range(1, workers + 1) if workers % count == 0]
    node_size, slots = draw(st.sampled_from(divisors)), draw(st.sampled_from(divisors))
    stride = stride_of(workers, slots, node_size)
    some = st.sets(st.integers(0, slots - 1), min_size=1, max_size=slots)
    sets = draw(st.lists(some.map(lambda cells: workers_of(frozenset(cells), slots, workers, stride)), max_size=6))
    if draw(st.booleans()):
        any_of = st.sets(st.integers(0, workers - 1), min_size=1).map(lambda members: tuple(sorted(members)))
        sets += draw(st.lists(any_of, max_size=3))
    return sets, workers, node_size


@settings(deadline=None)
@given(cases())
def test_groups_are_disjoint_and_own_in_common(case: tuple[list[OwnerSet], int, int]) -> None:
    sets, workers, node_size = case
    levels = make_levels(sets, workers, node_size)
    assert len(levels) <= 3 and (len(levels) > 0) == (workers > 1)
    for level in levels:
        assert sorted(worker for group in level.groups for worker in group) == list(range(workers))
        assert {len(group) for group in level.groups} == {level.size} and level.size > 1
        assert level.in_node == all(len({worker // node_size for worker in group}) == 1 for group in level.groups)
        for group in level.groups:
            assert list(group) == sorted(group) and all(level.group(worker) == group for worker in group)
            for owners in sets:
                owning = tuple(worker for worker in group if worker in owners)
                assert level.kind == "exchange" or owning in ((), group)
                assert all(level.members(worker, owners) == owning for worker in owning)
    assert sorted(worker for members in levels.classes for worker in members) == list(range(workers))
    assert all(len({worker in owners for worker in members}) == 1 for members in levels.classes for owners in sets)


@settings(deadline=None)
@given(cases())
def test_each_owner_ends_with_a_chunk_of_its_own(case: tuple[list[OwnerSet], int, int]) -> None:
    """Also the common owners of units that meet in one element, and all workers, who own what is not cut."""
    sets, workers, node_size = case
    levels = make_levels(sets, workers, node_size)
    common = [tuple(sorted(set(one) & set(other))) for one, other in combinations(sets, 2)]
    for owners in {*sets, *filter(None, common), tuple(range(workers))}:
        positions = [levels.position(rank, owners) for rank in owners]
        assert sorted(positions) == list(range(len(owners)))
        assert levels.in_chunk_order(owners) == tuple(rank for _, rank in sorted(zip(positions, owners, strict=True)))
        assert chunks_by_hand(levels, owners) == positions


def chunks_by_hand(levels: Levels, owners: OwnerSet) -> list[int]:
    """Splits the numbers of all chunks level by level, as a reduce-scatter does, among members that hold the same."""
    held = {rank: list(range(len(owners))) for rank in owners}
    for level in levels:
        before = dict(held)
        for rank in owners:
            members = [worker for worker in level.group(rank) if worker in owners]
            assert all(before[member] == before[rank] for member in members)
            size, rest = divmod(len(before[rank]), len(members))
            assert not rest
            held[rank] = before[rank][members.index(rank) * size :][:size]
    return [chunk for rank in owners for chunk in held[rank]]


@pytest.mark.parametrize(
    ("sets", "workers", "node_size"),
    [
        ([(0, 3), (1, 2), (0, 1, 2, 3)], 4, 2),
        ([(0, 3), (1, 2), (4, 6), (5, 7), tuple(range(8))], 8, 4),
        (cyclic(12, 4, 2, 6), 12, 6),
        (cyclic(24, 6, 2, 8), 24, 8),
        ([(0, 5, 7, 10), (1, 4, 6, 11), (2, 3, 8, 9), tuple(range(12))], 12, 3),
    ],
)
def test_members_of_a_group_hold_the_same_part(sets: list[OwnerSet], workers: int, node_size: int) -> None:
    levels = make_levels(sets, workers, node_size)
    for owners in [*sets, tuple(range(workers))]:
        assert chunks_by_hand(levels, owners) == [levels.position(rank, owners) for rank in owners]
    for rank in range(workers):  # what sharers fetch from their peers is the same, in one order
        of_class = {worker: number for number, members in enumerate(levels.classes) for worker in members}
        orders = {tuple(of_class[peer] for peer in levels.exchange_group(one)) for one in levels.sharers(rank)}
        assert len(orders) == 1


@pytest.mark.parametrize(
    ("workers", "node_size", "slots", "share", "expected"),
    [
        (4, 4, 4, 2, [("exchange", 4, True)]),
        (16, 16, 8, 4, [("class", 2, True), ("exchange", 8, True)]),
        (64, 8, 8, 4, [("class", 8, True), ("exchange", 8, False)]),
        (512, 8, 8, 4, [("class", 8, True), ("class", 8, False), ("exchange", 8, False)]),
        (32, 8, 8, 4, [("exchange", 8, True), ("class", 4, False)]),
        (32, 16, 8, 4, [("class", 2, True), ("exchange", 8, True), ("class", 2, False)]),
        (24, 8, 2, 1, [("class", 4, True), ("exchange", 2, True), ("class", 3, False)]),
        (8, 1, 4, 2, [("class", 2, False), ("exchange", 4, False)]),
        (8, 4, 1, 1, [("class", 4, True), ("class", 2, False)]),
    ],
)
def test_levels_of_common_clusters(
    workers: int, node_size: int, slots: int, share: int, expected: list[tuple[str, int, bool]]
) -> None:
    levels = make_levels(cyclic(workers, slots, share, node_size), workers, node_size)
    assert [(level.kind, level.size, level.in_node) for level in levels] == expected
    assert len(levels.classes) == slots and not levels.why


def test_classes_of_unequal_sizes_are_split() -> None:
    """The workers of cells 1 and 2 of 4 own the same units, so that they are one class of twice the size."""
    sets = [workers_of(frozenset(cells), 4, 32) for cells in ((0,), (1, 2), (3,))]
    levels = make_levels(sets, 32, 8)
    assert [(level.kind, level.size, level.in_node) for level in levels] == [
        ("class", 2, True),
        ("exchange", 4, True),
        ("class", 4, False),
    ]
    assert sorted(map(len, levels.classes)) == [8, 8, 8, 8] and not levels.why


def test_classes_without_equal_parts_exchange_all_at_once() -> None:
    levels = make_levels([(0, 1), (2, 3, 4)], 5, 5)
    assert [(level.kind, level.groups) for level in levels] == [("exchange", ((0, 1, 2, 3, 4),))]
    assert levels.why == "the classes have 2 to 3 workers, which do not divide into equal parts"


@pytest.mark.parametrize("slots", [8, 4096])
def test_thousands_of_workers_take_well_under_a_second(slots: int) -> None:
    sets = cyclic(4096, slots, slots // 2, 8)
    begin = time.process_time()
    levels = make_levels(sets, 4096, 8)
    order = levels.in_chunk_order(sets[0])
    assert time.process_time() - begin < 1.0
    assert len(levels.classes) == slots and sorted(order) == list(sets[0])
    assert all(first != second for first, second in pairwise(order))
