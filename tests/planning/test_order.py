"""Orders of collectives in which workers would wait for each other forever are refused; those of plans are not."""

from __future__ import annotations

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdp_compile.errors import PlanError
from sdp_compile.ownership.levels import Level, Levels
from sdp_compile.planning import schedule
from sdp_compile.planning.order import Call, check_calls
from sdp_compile.planning.plan import Plan
from sdp_compile.planning.schedule import turns
from sdp_compile.policies import NeuronPolicy
from sdp_compile.structure.families import Structure
from tests.planning.plans import plan_for, plans
from tests.synthetic import mlp

PAIR, OTHER, THIRD = (Call(members, f"round {number}") for number, members in enumerate([(0, 1), (1, 2), (0, 2)]))


def calls(plan: Plan, rank: int, bucket_bytes: int) -> list[Call]:
    return schedule.calls(plan.levels, rank, plan.exchanges(bucket_bytes), plan.buckets(rank, bucket_bytes))


def test_two_groups_in_opposite_order_are_refused() -> None:
    one, other = Call((0, 1), "round 0"), Call((0, 1, 2), "round 1")
    check_calls({0: [one, other], 1: [one, other], 2: [other]})
    with pytest.raises(PlanError) as error:
        check_calls({0: [one, other], 1: [other, one], 2: [other]})
    text = str(error.value)
    assert "Workers 0, 1 would wait for each other forever" in text
    assert "worker 0 issues round 0 (workers 0, 1) before round 1 (workers 0, 1, 2)" in text
    assert "worker 1 issues round 1 (workers 0, 1, 2) before round 0 (workers 0, 1)" in text


def test_three_workers_in_a_ring_are_refused() -> None:
    check_calls({0: [PAIR, THIRD], 1: [PAIR, OTHER], 2: [THIRD, OTHER]})
    with pytest.raises(PlanError, match="Workers 0, 1, 2 would wait") as error:
        check_calls({0: [PAIR, THIRD], 1: [OTHER, PAIR], 2: [THIRD, OTHER]})
    assert str(error.value).count(" issues ") == 3


def test_a_member_without_the_collective_is_refused() -> None:
    with pytest.raises(PlanError, match="Worker 1 never issues round 0 of workers 0, 1, in which worker 0 would wait"):
        check_calls({0: [PAIR], 1: []})
    with pytest.raises(PlanError, match="Worker 1 never issues"):  # once too few
        check_calls({0: [PAIR, PAIR], 1: [PAIR]})


def test_two_collectives_of_one_group_in_opposite_order_are_refused() -> None:
    first, second = Call((0, 1), "round 0"), Call((0, 1), "round 1")
    with pytest.raises(PlanError, match="worker 1 issues round 1 where worker 0 issues round 0"):
        check_calls({0: [first, second], 1: [second, first]})


def test_sizes_that_differ_and_workers_that_are_no_members_are_refused() -> None:
    check_calls({0: [Call((0, 1), "round 0", (7, 8))], 1: [Call((0, 1), "round 0", (8, 9))]})
    with pytest.raises(PlanError, match="worker 0 sends 8 bytes to worker 1, which expects 6"):
        check_calls({0: [Call((0, 1), "round 0", (7, 8))], 1: [Call((0, 1), "round 0", (6, 9))]})
    with pytest.raises(PlanError, match="Worker 2 issues round 0 of workers 0, 1, but is none"):
        check_calls({2: [PAIR]})


@settings(deadline=None, max_examples=40)
@given(plans(), st.sampled_from([16, 64, 10**6]))
def test_every_plan_has_an_order_with_as_many_collectives_as_it_says(
    made: tuple[Structure, Plan], bucket_bytes: int
) -> None:
    plan = made[1]
    plan.check_order(bucket_bytes)
    of_all = {rank: calls(plan, rank, bucket_bytes) for rank in range(plan.workers)}
    check_calls(of_all)
    for rank, own in of_all.items():
        assert len(own) == plan.collectives(rank, bucket_bytes)


@settings(deadline=None, max_examples=40)
@given(plans(), st.sampled_from([16, 64, 10**6]))
def test_a_worker_sends_as_many_bytes_as_the_plan_says(made: tuple[Structure, Plan], bucket_bytes: int) -> None:
    """A reduction of one level's all-reduce counts twice; what fills up chunks is no part of the plan's figure."""
    plan = made[1]
    for rank in range(plan.workers):
        padding = sum(
            2 * (len(bucket.owners) - 1) / len(bucket.owners) * bucket.padding_bytes
            for bucket in plan.buckets(rank, bucket_bytes)
        )
        sent = 0
        for call in calls(plan, rank, bucket_bytes):
            others = sum(size for member, size in zip(call.members, call.nbytes, strict=True) if member != rank)
            last = len(plan.levels) - 1
            both = plan.levels[last].kind == "class" and call.what.endswith(f"level {last}")
            sent += 2 * others if both else others
        communication = plan.communication(rank)
        assert sent == pytest.approx(communication.total - communication.refresh + padding)


def eight() -> Plan:
    """Four classes of two workers, in two nodes that have all classes each."""
    return plan_for(mlp(hidden=16, width=4, layers=3), NeuronPolicy(coverage=0.5, slots=4, node_size=4), 8)


def with_groups(plan: Plan, number: int, *groups: tuple[int, ...]) -> Plan:
    """The plan with other groups of one of its levels."""
    levels = list(plan.levels)
    levels[number] = Level(levels[number].kind, groups, levels[number].in_node)
    vars(plan)["levels"] = Levels(tuple(levels), plan.workers, plan.node_size, plan.levels.classes)
    return plan


def test_a_plan_with_bad_groups_is_refused() -> None:
    plan = eight()
    assert [level.groups for level in plan.levels] == [
        ((0, 1, 2, 3), (4, 5, 6, 7)),
        ((0, 4), (1, 5), (2, 6), (3, 7)),
    ]
    plan.check_order(64)
    same = [(0, 4), (1, 5), (2, 6), (3, 7)]
    with_groups(eight(), 1, *reversed(same)).check_order(64)  # the same groups
    with pytest.raises(PlanError, match="Worker 4 is in no group of a level of 2 workers"):
        with_groups(eight(), 1, (0, 5), *same[1:]).check_order(64)
    with pytest.raises(PlanError, match=r"Workers 0 and 5 .* own different units"):
        with_groups(eight(), 1, (0, 5), (1, 4), (2, 6), (3, 7)).check_order(64)


def test_workers_that_take_the_levels_of_a_plan_the_other_way_round_are_refused() -> None:
    """Worker 0 waits for 4, which exchanges with 5, which waits for 1, which exchanges with 0."""
    plan = eight()
    of_all = {rank: calls(plan, rank, 10**6) for rank in range(8)}
    check_calls(of_all)
    for rank in (0, 5):
        exchange, within, *others = of_all[rank]
        assert (len(exchange.members), len(within.members)) == (4, 2)
        of_all[rank] = [within, exchange, *others]
    with pytest.raises(PlanError, match="Workers 0, 1, 4, 5 would wait for each other forever"):
        check_calls(of_all)


def test_many_workers_are_a_few_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("sdp_compile.planning.schedule.check_calls", lambda found: seen.extend(found))
    plan = plan_for(mlp(hidden=64, width=4, layers=3), NeuronPolicy(coverage=0.5, node_size=8), 1024)
    plan.check_order()
    assert len(seen) == len(plan.levels.classes) == 8
    assert max(len(level.groups) for level in plan.levels) > 100
    for rank in (0, 5, 1023):
        assert len({level.group(rank) for level in plan.levels}) <= 3


def test_turns() -> None:
    assert list(turns(0, 3)) == list(turns(3, 0)) == []
    assert list(turns(2, 2)) == [(0, 0, 0), (1, 1, 0), (1, 0, 1), (2, 1, 1)]
    found = [turn[1:] for turn in turns(5, 3)]
    assert sorted(found) == sorted(chain.from_iterable([(number, step) for step in range(3)] for number in range(5)))


@settings(deadline=None, max_examples=40)
@given(plans(), st.sampled_from([16, 64, 10**6]))
def test_rounds_in_which_classes_have_nothing_in_common_have_no_exchange(
    made: tuple[Structure, Plan], bucket_bytes: int
) -> None:
    plan = made[1]
    classes = {worker: number for number, members in enumerate(plan.levels.classes) for worker in members}
    common = {b.round for b in plan.buckets(None, bucket_bytes) if len({classes[owner] for owner in b.owners}) > 1}
    rounds = range(plan.rounds(bucket_bytes))
    assert plan.exchanges(bucket_bytes) == tuple(number in common for number in rounds)


def test_workers_that_own_apart_exchange_only_what_all_own() -> None:
    plan = plan_for(mlp(hidden=8, width=3, layers=2), NeuronPolicy(replicas=2, slots=2), 4)
    assert [level.kind for level in plan.levels] == ["class", "exchange"]
    exchanges = plan.exchanges(16)
    assert set(exchanges) == {True, False}
    assert plan.collectives(0, 16) == 2 * len(exchanges) + 2 * sum(exchanges)
