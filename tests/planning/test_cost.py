"""Memory, FLOPs and communication of a worker, against counting elements one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from sdp_compile.formatting import size
from sdp_compile.ir.program import StateTensor
from sdp_compile.planning.cost import Memory, memory, ring_all_reduce_bytes
from sdp_compile.policies import BlockPolicy, NeuronPolicy
from sdp_compile.structure.layout import Leaf
from tests.planning.plans import owners_by_element, plan_for, plans
from tests.synthetic import attention, blocks, structure_of


@settings(deadline=None, max_examples=40)
@given(plans())
def test_figures_equal_counting_elements(case):
    structure, plan = case
    owners = {name: owners_by_element(structure, plan, name).reshape(-1) for name in plan.state}
    counts = [len(members) for name in owners for members in owners[name]]
    coverage = plan.coverage()
    assert (coverage.min, coverage.max) == (min(counts), max(counts))
    assert coverage.mean == pytest.approx(sum(counts) / len(counts))
    partial = [count for count in counts if count < plan.workers]
    if partial:
        assert coverage.cut.min == min(partial) and coverage.cut.mean == pytest.approx(sum(partial) / len(partial))
    else:
        assert coverage.cut is None
    for rank in range(plan.workers):
        held = {name: sum(rank in members for members in owners[name]) for name in owners}
        memory = plan.memory(rank)
        assert memory.parameters == memory.gradients == 4 * sum(held.values())
        assert memory.optimizer_state == 8 * sum(held.values()) + 4 * sum(count > 0 for count in held.values())
        sent = sum(2 * (len(m) - 1) / len(m) * 4 for name in owners for m in owners[name] if rank in m)
        assert plan.communication(rank).total == pytest.approx(sent)
        assert plan.communication(rank).groups == len(
            {m for name in owners for m in owners[name] if rank in m and len(m) > 1}
        )
    expected_groups = {tuple(sorted(members)) for name in owners for members in owners[name] if len(members) > 1}
    assert plan.groups == tuple(sorted(expected_groups))
    assert plan.memory().parameters == 4 * len(counts)


def test_buffers_follow_their_axis_but_count_apart():
    structure = structure_of({"bn.weight": [Leaf(8, "c")], "bn.running_mean": [Leaf(8, "c")], "bn.count": []})
    plan = plan_for(structure, NeuronPolicy(), 4, buffers=["bn.running_mean", "bn.count"])
    assert plan.local_shape("bn.running_mean", 0) == (4,) and plan.local_shape("bn.count", 0) == ()
    assert plan.mask("bn.count", 2).item() is True
    assert plan.pieces("bn.count")[0].owners == (0, 1, 2, 3)
    memory = plan.memory(0)
    assert (memory.parameters, memory.buffers, memory.optimizer_state) == (16, 20, 36)
    assert all(piece.name == "bn.weight" for bucket in plan.buckets() for piece in bucket.pieces)


def test_flops_scale_with_the_kept_share_and_vanish_with_blocks():
    structure = attention()
    plan = plan_for(structure, NeuronPolicy(), 4)
    assert plan.flops() == sum(term.flops for term in structure.flops)
    assert plan.flops(0) == pytest.approx(plan.flops() / 2)
    structure = blocks((4, 4, 4, 4))
    by_blocks = plan_for(structure, BlockPolicy(), 4)
    costs = structure.by_name["blocks"].unit_flops
    for rank in range(4):
        assert by_blocks.flops(rank) == by_blocks.flops() - sum(costs[unit] for unit in by_blocks.dropped_blocks(rank))


def test_tensors_without_gradient_and_buffers_cost_their_own_bytes_only():
    state = {
        "trained": StateTensor((4, 2), torch.bfloat16, "parameter", True),
        "frozen": StateTensor((3,), torch.float32, "parameter"),
        "statistics": StateTensor((5,), torch.float64, "buffer"),
        "elsewhere": StateTensor((100,), torch.float32, "parameter", True),
    }
    held = memory(state, {"trained": (2, 2), "frozen": (3,), "statistics": (5,), "elsewhere": None})
    assert held == Memory(8 + 12, 8, 16 + 4, 40) and held.total == 20 + 8 + 20


def test_what_a_worker_sends_is_what_a_ring_sends():
    """A ring of P passes P - 1 chunks of 1/P on to reduce and P - 1 to gather."""
    for workers in (1, 2, 5):
        assert ring_all_reduce_bytes(40.0, workers) == pytest.approx(2 * (workers - 1) * 40 / workers)


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"), (2**41, "2048.0 GiB")],
)
def test_bytes_for_people(nbytes, text):
    assert size(nbytes) == text
