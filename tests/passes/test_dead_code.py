"""What dead code is: golden graphs before and after."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile.ir.program import Capture, Program, StateTensor
from sdp_compile.passes.dead_code import DeadCode
from sdp_compile.structure.blocks.block import Blocks
from tests import residual_models as models
from tests.graph_text import parse, text_of


def cleaned(text: str, keeps: bool = True) -> str:
    """The text of the program after the pass, on a rank that holds the buffers ``count`` and ``mean`` or does not."""
    state = {"count": StateTensor((), torch.int64, "buffer"), "mean": StateTensor((4,), torch.float32, "buffer")}
    captured = Capture({}, state, {}, {}, nn.Module(), True)
    context = models.context_without(Blocks((), {}), captured, (), "sliced")
    if not keeps:
        context.holdings.keeps = lambda name: False  # type: ignore[method-assign]
    spec = pytree.tree_structure(((0,), {}))
    program = Program("train", parse(text), spec, pytree.tree_structure((0,)), {})
    before = text_of(program.graph)
    after = text_of(DeadCode().run(program, context).graph)
    assert text_of(program.graph) == before, "the given program was changed"
    return after


def test_what_nobody_reads_goes_random_numbers_included() -> None:
    assert cleaned("""
        x: f32[4] = placeholder
        noise: f32[4] = aten.rand_like(x)
        scaled: f32[4] = aten.mul.Tensor(noise, x)
        y: f32[4] = aten.relu(x)
        return y""") == inspect.cleandoc("""
        x: f32[4] = placeholder
        y: f32[4] = aten.relu(x)
        return y""")


def test_a_write_counts_when_the_value_is_read_later() -> None:
    assert cleaned("""
        x: f32[4] = placeholder
        y: f32[4] = aten.neg(x)
        view: f32[] = aten.select.int(y, 0, 0)
        written: f32[] = aten.zero_(view)
        result: f32[4] = aten.exp(y)
        late: f32[4] = aten.relu_(y)
        return result""") == inspect.cleandoc("""
        x: f32[4] = placeholder
        y: f32[4] = aten.neg(x)
        view: f32[] = aten.select.int(y, 0, 0)
        written: f32[] = aten.zero_(view)
        result: f32[4] = aten.exp(y)
        return result""")


def test_a_write_to_a_dead_value_goes() -> None:
    assert cleaned("""
        x: f32[4] = placeholder
        noise: f32[4] = aten.empty_like(x)
        drawn: f32[4] = aten.bernoulli_.float(noise, 0.5)
        return x""") == inspect.cleandoc("""
        x: f32[4] = placeholder
        return x""")


UNCHANGED = {
    "a write to what is returned": """
        x: f32[4] = placeholder
        y: f32[4] = aten.neg(x)
        written: f32[4] = aten.relu_(y)
        return y""",
    "a write to the caller's tensor": """
        x: f32[2, 2] = placeholder
        flat: f32[4] = aten.view(x, [-1])
        written: f32[4] = aten.relu_(flat)
        y: f32[2] = aten.ones([2])
        return y""",
}


@pytest.mark.parametrize("name", UNCHANGED)
def test_what_somebody_sees_stays(name: str) -> None:
    assert cleaned(UNCHANGED[name]) == inspect.cleandoc(UNCHANGED[name])


OF_STATE = {
    "a counter": """
        x: f32[2, 4] = placeholder
        count: i64[] = get_attr
        counted: i64[] = aten.add_.Tensor(count, 1)
        return x""",
    "the running statistics of an unused normalisation": """
        x: f32[2, 4] = placeholder
        mean: f32[4] = get_attr
        y: f32[2, 4] = aten.batch_norm(x, None, None, mean, mean, True, 0.1, 1e-05, False)
        return x""",
}


@pytest.mark.parametrize("name", OF_STATE)
def test_state_is_written_where_the_rank_holds_it(name: str) -> None:
    assert cleaned(OF_STATE[name], keeps=True) == inspect.cleandoc(OF_STATE[name])
    assert cleaned(OF_STATE[name], keeps=False) == inspect.cleandoc("""
        x: f32[2, 4] = placeholder
        return x""")
