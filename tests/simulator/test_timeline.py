"""Timelines of steps, worked out by hand."""

from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.simulator.timeline import Exchange, Work, step_ends


def exchange(classes: list[int], seconds: float, ready: float = 1.0) -> Exchange:
    return Exchange("all_reduce", 1.0, 2, classes, seconds, ready)


def test_a_bucket_that_is_ready_early_hides_behind_backward() -> None:
    work = [Work(forward=1, backward=4, update=1)]
    # The first is ready at 1 + 2 and ends at 5, like backward; the last one is fully exposed.
    assert step_ends(work, [exchange([0], 2, ready=0.5), exchange([0], 3)]) == [1 + 4 + 3 + 1]


def test_without_overlap_all_communication_follows_backward() -> None:
    work = [Work(1, 4, 1)]
    assert step_ends(work, [exchange([0], 2, 0.5), exchange([0], 3)], overlaps=False) == [1 + 4 + 5 + 1]


def test_a_collective_waits_for_its_slowest_member_and_holds_up_the_next() -> None:
    work = [Work(0, 1, 0), Work(0, 5, 0), Work(0, 1, 0)]
    ends = step_ends(work, [exchange([0, 1], 1), exchange([0, 2], 1)])
    # Worker 0 issues the second only after the first, so worker 2 waits for worker 1 too.
    assert ends == [7, 6, 7]


def test_updated_values_travel_after_the_update() -> None:
    work = [Work(0, 1, 2), Work(0, 1, 4)]
    assert step_ends(work, [exchange([0, 1], 1)], [exchange([0, 1], 3)]) == [1 + 1 + 4 + 3] * 2


durations = st.floats(0, 10, allow_nan=False)
works = st.lists(st.builds(Work, durations, durations, durations), min_size=3, max_size=3)
exchanges = st.lists(
    st.builds(exchange, st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True), durations, st.floats(0, 1)),
    max_size=6,
)


@given(works, exchanges)
def test_overlap_only_helps_and_no_step_is_shorter_than_its_work(work: list[Work], during: list[Exchange]) -> None:
    ends, serial = step_ends(work, during), step_ends(work, during, overlaps=False)
    for number, one in enumerate(work):
        own = sum(each.seconds for each in during if number in each.classes)
        assert one.total <= ends[number] + 1e-9
        assert one.update + own <= ends[number] + 1e-9
        assert ends[number] <= serial[number] + 1e-9
