"""The plans of a schedule are those that its policies make, and what moves is what `replan` would move."""

from __future__ import annotations

import pytest

from sdp_compile import BlockPolicy, NeuronPolicy
from sdp_compile.errors import PolicyError
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.nodes import Launch
from sdp_compile.planning.phases import planned_parts
from sdp_compile.policies import Phase, Schedule
from tests.simulator.test_simulate import analysed

SCHEDULE = Schedule(
    [
        Phase(
            NeuronPolicy(coverage=0.5, design="rolling"),
            share=0.5,
            resample_every=10,
            alternate=BlockPolicy(coverage=0.5),
            alternate_every=4,
        ),
        Phase(NeuronPolicy(coverage=0.5, masking="backward"), share=0.5),
    ]
)


@pytest.mark.parametrize("node_size", [None, 2])
def test_each_part_has_its_plan_and_what_moves_for_it(node_size: int | None) -> None:
    launch = Launch(node_size)
    parts = planned_parts(analysed(), SCHEDULE, 8, launch)
    assert [one.part.kind for one in parts] == ["phase", "alternate", "back", "owners", "phase"]
    before = None
    for one in parts:
        expected = make_plan(analysed(), one.part.policy, 8, launch)
        assert one.plan.digest == expected.digest
        if before is None:
            assert one.moves is None
        else:
            assert one.moves is not None and (one.moves.nbytes == before.moves(expected).nbytes).all()
            assert one.moves.total > 0
        before = expected
    assert parts[0].plan is parts[2].plan  # planned once


def test_a_phase_without_a_plan_is_named() -> None:
    schedule = Schedule([Phase(NeuronPolicy(coverage=0.5), share=0.5), Phase(NeuronPolicy(replicas=9), share=0.5)])
    with pytest.raises(PolicyError, match=r"Phase 2 of the schedule: .*9"):
        planned_parts(analysed(), schedule, 4)
