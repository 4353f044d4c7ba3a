"""The residual branches that a worker drops, as nodes of its graph."""

from __future__ import annotations

import pytest
import torch

from sdp_compile import BlockPolicy, LoweringError, NeuronPolicy
from sdp_compile.passes.branches import call_like, dropped_blocks, outputs_of
from tests.graph_text import text_of
from tests.passes.programs import context_of

aten = torch.ops.aten

TEXT = """
    x: f32[3, 4] = placeholder
    up: f32[4, 4] = get_attr[first.up]
    down: f32[4, 4] = get_attr[first.down]
    second: f32[4, 4] = get_attr[second.weight]
    linear: f32[3, 4] = aten.linear(x, up)
    linear_1: f32[3, 4] = aten.linear(linear, down)
    add: f32[3, 4] = aten.add.Tensor(x, linear_1)
    linear_2: f32[3, 4] = aten.linear(add, second)
    add_1: f32[3, 4] = aten.add.Tensor(add, linear_2)
    return add_1"""


@pytest.mark.parametrize(("rank", "expected"), [(0, ("add_1", "linear_2")), (1, ("add", "linear_1"))])
def test_a_branch_is_the_add_and_what_it_adds(rank: int, expected: tuple[str, str]) -> None:
    """Worker 0 owns the larger branch."""
    context = context_of(TEXT, BlockPolicy(replicas=1), rank=rank)
    program = context.analysis.programs["train"]
    outputs = outputs_of(program, dropped_blocks(context))
    assert [(add.name, operand.name) for add, operand in outputs] == [expected]


def test_a_policy_that_cuts_axes_drops_no_branches() -> None:
    context = context_of(TEXT, NeuronPolicy(replicas=1))
    assert dropped_blocks(context) == []


def test_a_branch_that_is_gone_is_an_error() -> None:
    context = context_of(TEXT, BlockPolicy(replicas=1))
    program = context.analysis.programs["train"]
    blocks = dropped_blocks(context)
    add = outputs_of(program, blocks)[0][0]
    add.replace_all_uses_with(add.args[0])
    program.graph.erase_node(add)
    with pytest.raises(LoweringError, match=r"no node 'add_1'.*Run the passes on blocks before"):
        outputs_of(program, blocks)


def test_a_new_node_is_described_like_the_one_that_it_stands_for() -> None:
    context = context_of(TEXT, BlockPolicy(replicas=1))
    graph = context.analysis.programs["train"].graph
    linear = next(node for node in graph.nodes if node.name == "linear_1")
    with graph.inserting_after(linear):
        double = call_like(linear, aten.to.dtype, (linear, torch.float64))
    with graph.inserting_after(double):
        total = call_like(linear, aten.sum.default, (linear,))
    new = [line for line in text_of(graph).splitlines() if line.startswith(("to", "sum"))]
    assert new == [
        "to: f64[3, 4] = aten.to.dtype(linear_1, torch.float64)",
        "sum_1: f32[] = aten.sum(linear_1)",
    ]
    assert double.meta["layouts"] == linear.meta["layouts"]
    assert "layouts" not in total.meta
