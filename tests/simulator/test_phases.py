"""Phases are predicted as their plans are; a change of plan takes as long as its busiest worker or node sends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sdp_compile import NeuronPolicy
from sdp_compile.planning.moves import Traffic
from sdp_compile.planning.nodes import Launch
from sdp_compile.planning.phases import planned_parts
from sdp_compile.policies import Phase, Schedule, resolve_schedule
from sdp_compile.runtime.comm.transfer import CHUNK_BYTES
from sdp_compile.simulator import Cluster, Link, simulate
from sdp_compile.simulator.phases import predict_change, simulate_schedule
from tests.simulator.test_simulate import analysed, cluster

NODES = Cluster(2, 2, Link(1e-5, 1e-9), Link(4e-5, 1e-8), flops=1e9)


def test_a_schedule_of_one_phase_is_its_plan() -> None:
    parts = planned_parts(analysed(), Schedule([Phase(NeuronPolicy(coverage=0.5))]), 4)
    found = simulate_schedule(parts, cluster(4))
    assert found.parts[0].step == simulate(parts[0].plan, cluster(4))
    assert found.step_seconds == found.parts[0].step.seconds
    assert found.changing_seconds == found.once_seconds == 0


@pytest.mark.parametrize("name", ["growing", "rolling"])
def test_the_mean_step_counts_each_phase_by_its_share(name: str) -> None:
    nodes = replace(cluster(8), nodes=2, workers_per_node=4)
    parts = planned_parts(analysed(), resolve_schedule(name), 8, Launch(4))
    found = simulate_schedule(parts, nodes)
    for one, planned in zip(found.parts, parts, strict=True):
        assert one.step == simulate(planned.plan, nodes)
        if planned.moves is not None:
            assert one.change == predict_change(planned.moves, nodes)
    seconds = {one.part.kind + str(one.part.phase): one for one in found.parts}
    if name == "growing":
        shares, changes = (0.5, 0.25, 0.25), ("phase2", "phase3")
        assert found.changing_seconds == 0
    else:
        shares, changes = (0.7, 0.3), ("phase2",)
        drawn = seconds["owners1"].change
        assert drawn is not None and found.changing_seconds == pytest.approx(0.7 / 100 * drawn.seconds)
    expected = sum(share * seconds[f"phase{number}"].step.seconds for number, share in enumerate(shares, 1))
    assert found.step_seconds == pytest.approx(expected)
    once = [seconds[change].change for change in changes]
    assert found.once_seconds == pytest.approx(sum(one.seconds for one in once if one is not None))
    described = found.to_dict()
    assert [part["share"] for part in described["parts"] if part["share"]] == list(shares)


def test_a_change_inside_a_node_by_hand() -> None:
    one_node = replace(NODES, nodes=1, workers_per_node=4)
    nbytes = np.zeros((4, 4), dtype=np.int64)
    nbytes[0, 1], nbytes[2, 1], nbytes[3, 0] = 1000, 2000, 500
    found = predict_change(Traffic(nbytes, 10_000), one_node)
    assert (found.sent, found.received, found.total, found.crossing) == (2000, 3000, 3500, 0)
    assert found.seconds == pytest.approx(1e-5 + 3000 * 1e-9)  # worker 1 receives 3,000 bytes in one batch of messages
    ring = predict_change(Traffic(nbytes, 10_000), one_node, "ring")
    assert ring.seconds == pytest.approx(3e-5 + 3000 * 1e-9)
    slow = predict_change(Traffic(nbytes, 10_000), replace(one_node, factors={"all_to_all": 3.0}))
    assert slow.seconds == pytest.approx(3 * found.seconds)


def test_a_change_between_nodes_and_its_copies_by_hand() -> None:
    nbytes = np.zeros((4, 4), dtype=np.int64)
    nbytes[0, 2], nbytes[1, 2], nbytes[2, 3], nbytes[3, 1] = 100, 200, 1000, 50
    found = predict_change(Traffic(nbytes, 8000), NODES)
    assert found.crossing == 350
    travelling = 4e-5 + 300 * 1e-8  # node 0 sends 300 bytes in all; no worker has more than 1,000 inside
    assert found.seconds == pytest.approx(travelling)
    copied = 2 * (1000 + 300) + 8000 / 4  # worker 2 sends 1,000 bytes and receives 300
    assert predict_change(Traffic(nbytes, 8000), replace(NODES, copy=1e6)).seconds == pytest.approx(
        travelling + copied / 1e6
    )


def test_large_changes_travel_in_lots() -> None:
    nbytes = np.zeros((4, 4), dtype=np.int64)
    nbytes[0, 1] = 5 * CHUNK_BYTES
    one_node = replace(NODES, nodes=1, workers_per_node=4)
    found = predict_change(Traffic(nbytes, 0), one_node)
    assert found.seconds == pytest.approx(5 * 1e-5 + 5 * CHUNK_BYTES * 1e-9)


def test_that_nothing_to_send_takes_no_time() -> None:
    found = predict_change(Traffic(np.zeros((4, 4), dtype=np.int64), 0), NODES)
    assert found.seconds == found.total == 0
