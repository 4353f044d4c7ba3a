"""Schedules: which policy a step has, their TOML form, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sdp_compile as sdp
from sdp_compile.errors import PolicyError
from sdp_compile.policies import LearningRate, NeuronPolicy, Phase, Schedule, is_schedule, ready_schedules
from sdp_compile.policies import resolve_schedule as resolve
from sdp_compile.toml import read_toml

HALF, FULL = NeuronPolicy(coverage=0.5), NeuronPolicy(coverage=1.0)
ROLLING = NeuronPolicy(coverage=0.5, design="rolling", seed=3)


def two(steps: int | None = 10, share: float = 0.7, **fields: Any) -> Schedule:
    return Schedule([Phase(HALF, share=share), Phase(FULL, share=1 - share)], steps=steps, **fields)


def test_that_a_step_has_the_policy_of_its_phase() -> None:
    schedule = two()
    assert schedule.starts == (0, 7)
    assert [schedule.policy_at(step) == FULL for step in range(12)] == [False] * 7 + [True] * 5
    assert schedule.policies() == (HALF, FULL)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(6, 300))
def test_that_each_phase_has_its_share_and_a_step(parts: list[int], steps: int) -> None:
    schedule = Schedule([Phase(HALF, share=part / sum(parts)) for part in parts], steps=steps)
    lengths = [after - before for before, after in zip(schedule.starts, (*schedule.starts[1:], steps), strict=True)]
    assert min(lengths) >= 1 and sum(lengths) == steps
    wanted = [part / sum(parts) * steps for part in parts]
    assert max(abs(one - other) for one, other in zip(lengths, wanted, strict=True)) <= len(parts)


def test_that_owners_are_drawn_again_with_the_next_seed() -> None:
    schedule = Schedule([Phase(FULL, share=0.2), Phase(ROLLING, share=0.8, resample_every=3)], steps=10)
    assert [schedule.policy_at(step).seed for step in range(2, 10)] == [3, 3, 3, 4, 4, 4, 5, 5]


def test_that_another_policy_has_its_turn() -> None:
    schedule = Schedule([Phase(HALF, alternate=FULL, alternate_every=4)], steps=8)
    assert [step for step in range(8) if schedule.policy_at(step) == FULL] == [3, 7]
    assert schedule.policies() == (HALF, FULL)


def test_the_learning_rate() -> None:
    stable = two(steps=20, learning_rate=LearningRate(warm_up=0.2, decay=0.25, last=0.1))
    rates = [stable.rate(step) for step in range(20)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0]) and set(rates[3:16]) == {1.0}
    assert rates[16:] == pytest.approx([1 - 0.9 * part / 5 for part in (1, 2, 3, 4)])
    cosine = two(steps=100, learning_rate=LearningRate(shape="cosine", warm_up=0.0))
    assert cosine.rate(0) == pytest.approx(1.0) and cosine.rate(50) == pytest.approx(0.5)
    constant = Schedule([Phase(HALF, share=0.5), Phase(FULL, share=0.5, learning_rate=0.3)], steps=10)
    constant = constant.replace(learning_rate={"shape": "constant", "warm_up": 0.0})
    assert [constant.rate(step) for step in (0, 4, 5, 9)] == [1.0, 1.0, 0.3, 0.3]
    parameter = torch.nn.Parameter(torch.zeros(1))
    scheduler = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD([parameter], lr=2.0), stable.rate)
    assert scheduler.get_last_lr() == [0.5]


@pytest.mark.parametrize("name", ready_schedules())
def test_that_ready_schedules_survive_toml(name: str, tmp_path: Path) -> None:
    schedule = resolve(name, steps=1000)
    path = tmp_path / "own.toml"
    path.write_text(schedule.to_toml())
    assert resolve(path) == resolve(str(path)) == resolve(read_toml(path)) == schedule
    assert is_schedule(name) and is_schedule(path) and is_schedule(schedule)
    assert schedule.steps == 1000 and schedule.policy_at(999) == schedule.phases[-1].policy


def test_that_alternation_and_redrawing_survive_toml(tmp_path: Path) -> None:
    schedule = Schedule(
        [
            Phase(ROLLING, share=0.25, resample_every=7, alternate=FULL, alternate_every=2, learning_rate=0.5),
            Phase({"policy": "block", "replicas": 2, "rules": {"*.head": "shared"}}, share=0.75),
        ],
        learning_rate=LearningRate(shape="cosine", last=0.1),
    )
    path = tmp_path / "own.toml"
    path.write_text(schedule.to_toml())
    assert resolve(path) == schedule


def test_that_a_policy_is_a_schedule_of_one_phase(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(HALF.to_toml())
    for policy in (HALF, "neuron", path, {"policy": "neuron"}):
        schedule = resolve(policy)
        assert schedule.policy_at(10**6) == HALF and not is_schedule(policy)
    assert resolve("growing", steps=8) == resolve("growing").replace(steps=8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schedule([Phase(HALF, share=0.4)]), "add up to 1, and add up to 0.4"),
        (lambda: Schedule([]), "add up to 0"),
        (lambda: two(steps=1), "less than one step for each of 2 phases"),
        (lambda: two(steps=None).policy_at(0), "does not know the number of steps"),
        (lambda: two().policy_at(-1), "integer of at least 0"),
        (lambda: two().policy_at(True), "integer of at least 0"),
        (lambda: two().policy_at(1.5), "integer of at least 0"),  # type: ignore[arg-type]
        (lambda: Schedule([HALF]), "phase 1 is a policy"),
        (lambda: Schedule("neuron"), "list of Phase objects"),
        (lambda: Schedule([3]), "phase 1 must be a Phase"),
        (lambda: Schedule([{"share": 1.0, "policy": "neuron", "coverag": 0.5}]), "phase 1: NeuronPolicy has no field"),
        (lambda: Schedule([{"shar": 1.0, "policy": "neuron"}]), "phase 1: NeuronPolicy has no field 'shar'"),
        (lambda: Schedule([Phase(HALF)], step=3), "Schedule has no field 'step'. Did you mean 'steps'"),
        (lambda: Phase(HALF, share=0.0), "share=0.0 is not valid"),
        (lambda: Phase(HALF, resample_every=5), "design='cyclic' does not draw"),
        (lambda: Phase("auto", resample_every=5), "design=None does not draw"),
        (lambda: Phase(HALF, alternate=FULL), "belong together"),
        (lambda: Phase("neurn"), "neurn"),
        (lambda: LearningRate(warm_up=0.8, decay=0.5), "more than all steps"),
        (lambda: LearningRate(shape="linear"), "shape"),
        (lambda: resolve("growin"), "Did you mean 'growing'"),
        (lambda: resolve("absent.toml"), "absent.toml' does not exist"),
        (lambda: resolve(3), "a name, a TOML file or a mapping"),  # type: ignore[arg-type]
    ],
)
def test_that_mistakes_are_named(make: Any, message: str) -> None:
    with pytest.raises(PolicyError) as caught:
        make()
    assert message in str(caught.value)


def test_that_a_later_phase_without_a_plan_is_found_before_training() -> None:
    schedule = Schedule([Phase(HALF, share=0.5), Phase(NeuronPolicy(replicas=9), share=0.5)], steps=10)
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4)), torch.randn(2, 4)
    with pytest.raises(PolicyError, match="Phase 2 of the schedule: replicas=9 is more than the 4 workers"):
        sdp.plan(model, schedule, (x,), workers=4)
    with pytest.raises(PolicyError, match="does not know the number of steps"):
        sdp.plan(model, "growing", (x,), workers=4)
    plan = sdp.plan(model, sdp.resolve_schedule("growing", steps=100), (x,), workers=4)
    assert plan.policy == NeuronPolicy(coverage=0.5).describe()
