"""Why statements differ: who is where, who may go on, and the first option or element that differs."""

from __future__ import annotations

from typing import Any

from sdp_compile.runtime.comm.meeting import mixed, share_of_zero
from sdp_compile.runtime.comm.verdict import Details, judge

BACKWARD, STEP = "in a backward pass", "in a step"


def at_backward(held: str = "ab") -> Details:
    return Details(BACKWARD, [f"0:{name}" for name in held])


def at_step(steps: str, held: str = "ab", items: Any = None, **options: str) -> Details:
    return Details(STEP, [f"0:{name}" for name in held], {f"0:{name}": 0 for name in steps}, [options], items or {})


def test_a_worker_that_skips_its_step_is_named() -> None:
    verdict = judge([at_step("ab"), at_step("ab"), at_backward()])
    assert verdict.error.startswith(f"Workers 0, 1 are {STEP}, while worker 2 is {BACKWARD}. ")


def test_a_worker_that_holds_nothing_of_a_step_waits_for_it() -> None:
    verdict = judge([at_step("a"), at_step("a"), at_backward("b")])
    assert not verdict.error and verdict.complete == {0, 1}


def test_steps_of_one_parameter_each_are_taken_in_turn() -> None:
    verdict = judge([at_step("a", "ab"), at_step("b", "b")])  # worker 0 comes to b later
    assert not verdict.error and verdict.complete == {0}
    crossed = judge([at_step("a"), at_step("b")])
    assert crossed.error.startswith("Worker 0 would step 'a', and worker 1 would not")


def test_the_option_that_differs_is_named() -> None:
    verdict = judge([at_step("a", "a", lr="0.1"), at_step("a", "a", lr="0.1"), at_step("a", "a", lr="0.2")])
    assert "step 'a' with different options: lr is 0.1 on workers 0, 1 and 0.2 on worker 2." in verdict.error


def test_the_element_that_differs_is_named() -> None:
    same, other = ["1", "value", "The value of 'b'"], ["2", "value", "The value of 'a'[0:2]"]
    views = [at_step("a", "a", {"b": same, "a": [str(rank // 2), *other[1:]]}) for rank in range(3)]
    assert judge(views).error.startswith(
        "The value of 'a'[0:2] differs between workers 0, 1 and worker 2. Something changed"
    )


def test_parameters_outside_belong_to_all_workers() -> None:
    key = "outside:parameter 0 of shape [2]"
    outside = Details(STEP, ["0:a"], {"0:a": 0, key: 0}, [{}])
    assert judge([outside, outside, at_backward()]).error
    error = judge([outside, at_step("a", "a")]).error
    assert error.startswith("Worker 0 would step parameter 0 of shape [2], and worker 1 would not")


def test_contributions_are_zero_together_if_and_only_if_all_agree() -> None:
    for members in ([0, 1, 2], [3, 5], [4]):
        assert sum(share_of_zero(rank, members) * mixed("lr", 0.1) for rank in members) == 0
    numbers = {0: mixed(1), 1: mixed(1), 2: mixed(2)}
    assert sum(share_of_zero(rank, [0, 1, 2]) * number for rank, number in numbers.items()) % 2**64 != 0
