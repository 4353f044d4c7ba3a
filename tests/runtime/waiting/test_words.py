"""When a wait cannot end, and how that is told."""

from __future__ import annotations

import threading

from sdp_compile.runtime.waiting.state import State, Wait, Watch, current_waits
from sdp_compile.runtime.waiting.words import places, stalled, workers_text

MEETING = "what the workers do next (0, 1, 2)"
BARRIER = "torch.distributed.barrier()"


def waits(call: str, seconds: float = 40.0, asked: int = 3) -> State:
    return State(f"in {call}", call, seconds, asked)


def test_workers_that_wait_in_different_collectives_are_stalled() -> None:
    states = {0: waits(MEETING), 1: waits(BARRIER), 2: waits(MEETING)}
    text = stalled(states, (0, 1, 2), 3, 30.0)
    assert "for 30 s in different places" in text
    assert f"workers 0, 2: in {MEETING}\n  worker 1: in {BARRIER}\n" in text


def test_workers_that_may_still_come_are_waited_for() -> None:
    meeting = waits(MEETING)
    for other in (
        meeting,  # the collective itself takes long
        waits(BARRIER, seconds=20.0),
        waits(BARRIER, asked=2),  # no answer to this question
        State("in no collective (train.py, line 3, in main)", asked=3),
    ):
        assert stalled({0: meeting, 1: other}, (0, 1), 3, 30.0) == ""


def test_a_worker_that_has_left_is_not_waited_for_by_those_that_need_it() -> None:
    states = {0: waits(MEETING, seconds=6.0), 1: waits(MEETING, seconds=6.0), 2: State(left="ended without an error")}
    assert "worker 2 will not come" in stalled(states, (0, 1, 2), 3, 30.0)
    assert "  worker 2: ended without an error\n" in stalled(states, (0, 1, 2), 3, 30.0)
    assert stalled(states, (0, 1), 3, 30.0) == ""


def test_a_worker_without_an_answer_is_told_apart() -> None:
    assert "worker 1: no answer" in places({0: waits(MEETING), 1: waits(MEETING, asked=2)}, 3)


def test_many_workers_are_not_all_named() -> None:
    assert workers_text([3]) == "worker 3"
    assert workers_text(range(20)).endswith("14, 15 and 4 more")


def test_what_this_process_does() -> None:
    seen: list[State] = []

    def look() -> None:
        thread = threading.Thread(target=lambda: seen.append(Watch().state(7)))
        thread.start()
        thread.join()

    look()
    current_waits.append(Wait("a collective", (0, 1), "in an optimizer's step", 0.0))
    try:
        look()
    finally:
        current_waits.pop()
    assert seen[0].doing.startswith("in no collective (test_words.py, line ") and seen[0].doing.endswith("in look)")
    assert not seen[0].call and seen[0].asked == 7
    assert seen[1].doing.startswith("in an optimizer's step (test_words.py, line ")
    assert seen[1].call == "a collective (0, 1)" and seen[1].seconds > 0
    assert State.of(seen[1].text()) == seen[1]
