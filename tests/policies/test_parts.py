"""The parts of a schedule are the policies that `policy_at` gives, each where it first has its turn."""

from __future__ import annotations

from itertools import pairwise

import pytest

from sdp_compile.policies import BlockPolicy, NeuronPolicy, Phase, Schedule, ready_schedules, resolve_schedule
from sdp_compile.policies.parts import parts_of, with_steps

HALF = NeuronPolicy(coverage=0.5)
ROLLING = NeuronPolicy(coverage=0.5, design="rolling")
BACKWARD = NeuronPolicy(coverage=0.5, masking="backward")

SCHEDULES = {
    "one": Schedule([Phase(HALF)]),
    "grows": Schedule([Phase(HALF, share=0.5), Phase(NeuronPolicy(coverage=1.0), share=0.5)], steps=40),
    "draws": Schedule([Phase(ROLLING, share=0.7, resample_every=10), Phase(BACKWARD, share=0.3)], steps=100),
    "draws once": Schedule([Phase(ROLLING, share=0.5, resample_every=60), Phase(BACKWARD, share=0.5)], steps=100),
    "alternates": Schedule([Phase(HALF, share=0.5, alternate=BACKWARD, alternate_every=4), Phase(BACKWARD, share=0.5)]),
    "both": Schedule([Phase(ROLLING, resample_every=5, alternate=BlockPolicy(coverage=0.5), alternate_every=3)]),
    "both at once": Schedule([Phase(ROLLING, resample_every=4, alternate=BACKWARD, alternate_every=4)], steps=64),
    "same again": Schedule([Phase(HALF, share=0.5, learning_rate=2), Phase(HALF, share=0.5)], steps=10),
}


@pytest.mark.parametrize("name", [*SCHEDULES, *ready_schedules()])
def test_that_parts_are_all_changes_of_a_run(name: str) -> None:
    schedule = SCHEDULES[name] if name in SCHEDULES else resolve_schedule(name)
    known, parts = with_steps(schedule), parts_of(schedule)
    assert known.steps is not None
    assert schedule.steps in (None, known.steps)
    assert sum(part.share for part in parts) == pytest.approx(1)
    for part in parts:
        assert part.policy == known.policy_at(part.step) and known.phase_at(part.step) == part.phase - 1
    assert [part.step for part in parts] == sorted({part.step for part in parts})
    # Walk through the run: each change is one that was listed, and as frequent as was said.
    listed = {(part.phase, _kind_free(part.policy)) for part in parts}
    changes = 0
    for step in range(known.steps):
        policy, number = known.policy_at(step), known.phase_at(step)
        assert (number + 1, _kind_free(policy)) in listed
        changes += step > 0 and policy != known.policy_at(step - 1)
    once = sum(part.kind == "phase" and part.policy != before.policy for before, part in pairwise(parts))
    expected = once + known.steps * sum(part.rate for part in parts)
    assert abs(changes - expected) <= 0.15 * changes + 2 * len(schedule.phases)


def _kind_free(policy: object) -> str:
    """A policy without the number of its draw."""
    assert isinstance(policy, NeuronPolicy | BlockPolicy)
    return repr({**policy.describe(), "seed": 0})


def test_that_a_phase_too_short_for_a_draw_has_none() -> None:
    assert [part.kind for part in parts_of(SCHEDULES["draws once"])] == ["phase", "phase"]
    assert [part.kind for part in parts_of(SCHEDULES["draws"])] == ["phase", "owners", "phase"]
    assert [part.kind for part in parts_of(SCHEDULES["both at once"])] == ["phase", "alternate", "back"]
    assert [part.kind for part in parts_of(SCHEDULES["both"])] == ["phase", "alternate", "back", "owners"]


def test_that_the_node_size_is_that_of_all_policies() -> None:
    schedule = SCHEDULES["alternates"].on_nodes(2)
    assert {policy.node_size for policy in schedule.policies()} == {2}
    assert schedule.on_nodes(None) is schedule
