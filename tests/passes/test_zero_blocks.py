"""The reference lowering of dropped blocks: ``x + f(x)`` becomes ``x + 0`` where the worker does not own ``f``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdp_compile import BlockPolicy
from sdp_compile.capture import capture
from sdp_compile.passes import ZeroBlocks
from sdp_compile.structure.blocks.finding import find_blocks
from tests import residual_models as models
from tests.passes.dropping import CASES, Prepared, lowered
from tests.passes.programs import context_of, lines, rewritten


def test_the_branch_is_computed_and_zeros_are_added() -> None:
    """Worker 0 of two owns the first branch only."""
    text = """
        x: f32[3, 4] = placeholder
        stem: f32[4, 4] = get_attr[stem.weight]
        first: f32[4, 4] = get_attr[first.weight]
        second: f32[4, 4] = get_attr[second.weight]
        skip: f32[3, 4] = aten.linear(x, stem)
        linear: f32[3, 4] = aten.linear(skip, first)
        add: f32[3, 4] = aten.add.Tensor(skip, linear)
        linear_1: f32[3, 4] = aten.linear(add, second)
        add_1: f32[3, 4] = aten.add.Tensor(add, linear_1)
        return add_1"""
    assert rewritten(context_of(text, BlockPolicy(replicas=1), lowering="masked"), ZeroBlocks()) == lines("""
        x: f32[3, 4] = placeholder
        stem: f32[4, 4] = get_attr[stem.weight]
        first: f32[4, 4] = get_attr[first.weight]
        second: f32[4, 4] = get_attr[second.weight]
        skip: f32[3, 4] = aten.linear(x, stem)
        linear: f32[3, 4] = aten.linear(skip, first)
        add: f32[3, 4] = aten.add.Tensor(skip, linear)
        linear_1: f32[3, 4] = aten.linear(add, second)
        new_zeros: b8[] = aten.new_zeros(linear_1, [], dtype=torch.bool)
        where: f32[3, 4] = aten.where.ScalarOther(new_zeros, linear_1, 0)
        add_1: f32[3, 4] = aten.add.Tensor(add, where)
        return add_1""")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_it_equals_multiplying_the_parameters_of_the_block_by_zero(case: models.Case) -> None:
    prepared = Prepared(case)
    prepared.assert_equals_oracle(range(0, len(prepared.blocks.blocks), 2), "masked")


class Residual(nn.Module):
    """x + b(relu(a(x))), after a first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return x + self.b(torch.relu(self.a(x)))  # type: ignore[no-any-return]


@pytest.mark.timeout(120)
def test_an_infinite_branch_leaves_nothing_behind() -> None:
    """0 times infinity is NaN."""
    model = Residual().double()
    captured = capture(model, (torch.randn(3, 4, dtype=torch.float64),))
    context = models.context_without(find_blocks(captured), captured, {0}, "masked")
    state = {name: p.detach().clone() for name, p in model.named_parameters()}
    state["b.weight"].fill_(float("inf"))
    output = models.Runner(lowered(captured, "train", context), state)((torch.randn(3, 4, dtype=torch.float64),))
    assert output.isfinite().all()
