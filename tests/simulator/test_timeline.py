"""Timelines, worked out by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdp_compile.simulator.timeline import Operation, run


def test_a_stream_runs_one_operation_after_the_other() -> None:
    assert run([Operation("a", 1), Operation("b", 5), Operation("a", 2)]) == [1, 5, 3]


def test_an_operation_waits_until_it_is_ready_and_for_others() -> None:
    assert run([Operation("a", 1, ready=3), Operation("b", 1, after=(0,)), Operation("a", 1)]) == [4, 5, 5]


def test_transfers_share_their_link() -> None:
    # Both have half of the link until 4, when the first has sent 2; the other then needs 1 more.
    assert run([Operation("a", 0, 2, "link"), Operation("b", 0, 3, "link")]) == [4, 5]
    assert run([Operation("a", 0, 2, "here"), Operation("b", 0, 3, "there")]) == [2, 3]
    # Messages on their way leave the link to others.
    assert run([Operation("a", 2, 2, "link"), Operation("b", 0, 2, "link")]) == [4, 2]


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="wait for each other"):
        run([Operation("a", 1, after=(1,)), Operation("b", 1, after=(0,))])


seconds = st.floats(0, 10)
operations = st.lists(
    st.builds(Operation, st.sampled_from("abc"), seconds, seconds, st.sampled_from(["here", "there"]), seconds),
    max_size=8,
)


@given(operations)
def test_nothing_is_quicker_than_alone_nor_slower_than_all_in_a_row(given_: list[Operation]) -> None:
    ends, latest = run(given_), max((one.ready for one in given_), default=0.0)
    for one, end in zip(given_, ends, strict=True):
        assert end >= one.ready + one.latency + one.transfer - 1e-9
        assert end <= latest + sum(other.latency + other.transfer for other in given_) + 1e-9
    for link in ("here", "there"):
        assert max(ends, default=0.0) >= sum(one.transfer for one in given_ if one.link == link) - 1e-9
