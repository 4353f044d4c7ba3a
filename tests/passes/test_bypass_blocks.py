"""``x + f(x)`` becomes ``x`` where the worker does not own ``f``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile import BlockPolicy, LoweringError, sdp_compile
from sdp_compile.ir.program import copy_program
from sdp_compile.passes import BypassBlocks, DeadCode
from tests import residual_models as models
from tests.oracle import randomise, relative_error
from tests.passes.dropping import CASES, TOLERANCE, Prepared, outputs_without
from tests.passes.programs import context_of, lines, rewritten

ONE_OWNER = BlockPolicy(replicas=1)
"""With two blocks and two workers: worker 0 owns the first block, worker 1 the second."""

TWO_BRANCHES = """
    x: f32[3, 4] = placeholder
    stem: f32[4, 4] = get_attr[stem.weight]
    first: f32[4, 4] = get_attr[first.weight]
    second: f32[4, 4] = get_attr[second.weight]
    skip: f32[3, 4] = aten.linear(x, stem)
    linear: f32[3, 4] = aten.linear(skip, first)
    add: f32[3, 4] = aten.add.Tensor(skip, linear)
    linear_1: f32[3, 4] = aten.linear(add, second)
    add_1: f32[3, 4] = aten.add.Tensor(add, linear_1)
    tanh: f32[3, 4] = aten.tanh(add_1)
    return tanh"""


def test_readers_of_the_sum_read_the_skip_path_instead() -> None:
    assert rewritten(context_of(TWO_BRANCHES, ONE_OWNER, rank=0), BypassBlocks()) == lines("""
        x: f32[3, 4] = placeholder
        stem: f32[4, 4] = get_attr[stem.weight]
        first: f32[4, 4] = get_attr[first.weight]
        second: f32[4, 4] = get_attr[second.weight]
        skip: f32[3, 4] = aten.linear(x, stem)
        linear: f32[3, 4] = aten.linear(skip, first)
        add: f32[3, 4] = aten.add.Tensor(skip, linear)
        linear_1: f32[3, 4] = aten.linear(add, second)
        tanh: f32[3, 4] = aten.tanh(add)
        return tanh""")


def test_dead_code_then_removes_the_branch() -> None:
    assert rewritten(context_of(TWO_BRANCHES, ONE_OWNER, rank=1), BypassBlocks(), DeadCode()) == lines("""
        x: f32[3, 4] = placeholder
        stem: f32[4, 4] = get_attr[stem.weight]
        second: f32[4, 4] = get_attr[second.weight]
        skip: f32[3, 4] = aten.linear(x, stem)
        linear_1: f32[3, 4] = aten.linear(skip, second)
        add_1: f32[3, 4] = aten.add.Tensor(skip, linear_1)
        tanh: f32[3, 4] = aten.tanh(add_1)
        return tanh""")


def test_a_sum_of_branches_keeps_the_owned_one() -> None:
    """Both branches start at the skip path, and are added to each other before they are added to it."""
    text = """
        x: f32[3, 4] = placeholder
        stem: f32[4, 4] = get_attr[stem.weight]
        first: f32[4, 4] = get_attr[first.weight]
        second: f32[4, 4] = get_attr[second.weight]
        skip: f32[3, 4] = aten.linear(x, stem)
        linear: f32[3, 4] = aten.linear(skip, first)
        linear_1: f32[3, 4] = aten.linear(skip, second)
        add: f32[3, 4] = aten.add.Tensor(linear, linear_1)
        add_1: f32[3, 4] = aten.add.Tensor(skip, add)
        return add_1"""
    assert rewritten(context_of(text, ONE_OWNER, rank=1), BypassBlocks(), DeadCode()) == lines("""
        x: f32[3, 4] = placeholder
        stem: f32[4, 4] = get_attr[stem.weight]
        second: f32[4, 4] = get_attr[second.weight]
        skip: f32[3, 4] = aten.linear(x, stem)
        linear_1: f32[3, 4] = aten.linear(skip, second)
        add_1: f32[3, 4] = aten.add.Tensor(skip, linear_1)
        return add_1""")


def test_an_activation_in_place_on_the_sum_leaves_the_skip_path_alone() -> None:
    """``relu_`` becomes ``relu``: the skip path is read again below."""
    text = TWO_BRANCHES.replace("tanh: f32[3, 4] = aten.tanh(add_1)", "tanh: f32[3, 4] = aten.relu_(add_1)")
    assert rewritten(context_of(text, ONE_OWNER, rank=0), BypassBlocks()).splitlines()[-3:] == [
        "linear_1: f32[3, 4] = aten.linear(add, second)",
        "tanh: f32[3, 4] = aten.relu(add)",
        "return tanh",
    ]


def test_the_skip_path_is_copied_where_a_view_of_the_sum_is_overwritten() -> None:
    text = TWO_BRANCHES.replace(
        "tanh: f32[3, 4] = aten.tanh(add_1)\n    return tanh",
        "view: f32[12] = aten.view(add_1, [12])\n    mul_: f32[12] = aten.mul_.Tensor(view, 2)\n    return add_1, add",
    )
    assert rewritten(context_of(text, ONE_OWNER, rank=0), BypassBlocks()).splitlines()[-5:] == [
        "linear_1: f32[3, 4] = aten.linear(add, second)",
        "clone: f32[3, 4] = aten.clone(add)",
        "view: f32[12] = aten.view(clone, [12])",
        "mul_: f32[12] = aten.mul_.Tensor(view, 2)",
        "return clone, add",
    ]


def test_the_skip_path_is_copied_where_the_sum_is_overwritten_by_an_operator_that_only_works_in_place() -> None:
    text = TWO_BRANCHES.replace("tanh: f32[3, 4] = aten.tanh(add_1)", "tanh: f32[3, 4] = aten.normal_(add_1)")
    assert rewritten(context_of(text, ONE_OWNER, rank=0), BypassBlocks()).splitlines()[-4:] == [
        "linear_1: f32[3, 4] = aten.linear(add, second)",
        "clone: f32[3, 4] = aten.clone(add)",
        "tanh: f32[3, 4] = aten.normal_(clone)",
        "return tanh",
    ]


def test_the_skip_path_takes_the_dtype_of_the_sum() -> None:
    text = """
        x: bf16[3, 4] = placeholder
        first: f32[4, 4] = get_attr[first.weight]
        second: f32[4, 4] = get_attr[second.weight]
        skip: bf16[3, 4] = aten.neg(x)
        to: f32[3, 4] = aten.to.dtype(skip, torch.float32)
        linear: f32[3, 4] = aten.linear(to, first)
        add: f32[3, 4] = aten.add.Tensor(skip, linear)
        linear_1: f32[3, 4] = aten.linear(add, second)
        add_1: f32[3, 4] = aten.add.Tensor(add, linear_1)
        return add_1"""
    assert rewritten(context_of(text, ONE_OWNER, rank=1), BypassBlocks(), DeadCode()) == lines("""
        x: bf16[3, 4] = placeholder
        second: f32[4, 4] = get_attr[second.weight]
        skip: bf16[3, 4] = aten.neg(x)
        to_1: f32[3, 4] = aten.to.dtype(skip, torch.float32)
        linear_1: f32[3, 4] = aten.linear(to_1, second)
        add_1: f32[3, 4] = aten.add.Tensor(to_1, linear_1)
        return add_1""")


def test_a_worker_that_drops_nothing_gets_the_program_itself() -> None:
    context = context_of(TWO_BRANCHES, BlockPolicy(coverage=1.0))
    assert BypassBlocks().run(context.analysis.programs["train"], context) is context.analysis.programs["train"]


def test_a_graph_without_the_block_is_an_error_that_names_the_node() -> None:
    context = context_of(TWO_BRANCHES, ONE_OWNER)
    once = BypassBlocks().run(context.analysis.programs["train"], context)
    with pytest.raises(LoweringError, match=r"no node 'add_1', which block analysis found.*before those that remove"):
        BypassBlocks().run(once, context)


def test_a_skip_path_of_another_shape_is_an_error() -> None:
    text = TWO_BRANCHES.replace(
        "return tanh", "row: f32[1, 4] = aten.slice.Tensor(skip, 0, 0, 1)\n    return tanh, row"
    )
    context = context_of(text, ONE_OWNER, rank=0)
    program = copy_program(context.analysis.programs["train"])
    nodes = {node.name: node for node in program.graph.nodes}
    nodes["linear_1"].append(nodes["row"])
    nodes["add_1"].args = (nodes["row"], nodes["linear_1"])
    with pytest.raises(LoweringError, match=r"skip path 'row' does not have the shape of the sum 'add_1'"):
        BypassBlocks().run(program, context)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_equals_multiplying_the_parameters_of_the_block_by_zero(case: models.Case) -> None:
    prepared = Prepared(case)
    count = len(prepared.blocks.blocks)
    assert count > 1
    for units in ({0}, set(range(0, count, 2)), set(range(1, count)), set(range(count))):
        prepared.assert_equals_oracle(units, "sliced")
    prepared.assert_equals_oracle({0}, "sliced", "layers")


class Branching(nn.Module):
    """The skip path, the sum or a view of either is overwritten later."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        self.first, self.a = nn.Linear(4, 4), nn.Linear(4, 4)
        self.variant = variant

    def forward(self, x: torch.Tensor) -> Any:
        x = self.first(x)
        if self.variant == "sum on the skip path":
            x = x.tanh()
            x += self.a(x.detach())
            return x.mul_(2), x
        y = x + self.a(x)
        if self.variant == "skip path overwritten":
            z = x.mul_(3)
            return y + 1, z
        if self.variant == "view of the sum overwritten":
            y[:, 0].mul_(3)
            return y, x
        y.mul_(2)
        return y, x + 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "variant",
    ["sum on the skip path", "skip path overwritten", "view of the sum overwritten", "sum overwritten, skip used"],
)
def test_aliases_of_skip_path_and_sum(variant: str) -> None:
    prepared = Prepared(lambda: (Branching(variant), (torch.randn(3, 4),)))
    assert len(prepared.blocks.blocks) == 1
    for units in (set[int](), {0}):
        for found, expected in zip(*outputs_without(prepared, units), strict=True):
            assert relative_error(found, expected) < TOLERANCE


class Branches(nn.Module):
    """Two branches of two linear layers each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.second = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)
        return x + self.second(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("rank", "kept"), [(0, "first"), (1, "second")])
def test_a_worker_holds_and_computes_nothing_of_a_dropped_block(rank: int, kept: str) -> None:
    model, x = randomise(Branches().double()), torch.randn(2, 4, dtype=torch.double)
    module = sdp_compile(model, ONE_OWNER, (x,), workers=2, rank=rank)
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {kept}
    assert sum("linear" in node.name for node in module.graph.nodes) == 2
    assert torch.equal(module(x), x + getattr(model, kept)(x))
