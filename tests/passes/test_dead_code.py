"""What dead code is: golden graphs before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sdp_compile.ir.program import Capture, Program, StateTensor
from sdp_compile.passes.dead_code import DeadCode
from sdp_compile.structure.blocks.block import Blocks
from tests import residual_models as models

aten = torch.ops.aten
Build = Callable[[fx.Graph, fx.Node], Any]


def program_of(build: Build) -> Program:
    """A program of one input, written node by node; operators become nodes named after themselves."""
    graph = fx.Graph()
    graph.output((build(graph, graph.placeholder("x")),))
    spec = pytree.tree_structure(((0,), {}))
    return Program("train", graph, spec, pytree.tree_structure((0,)), {})


def cleaned(build: Build, keeps: bool = True) -> str:
    state = {"count": StateTensor((), torch.int64, "buffer"), "mean": StateTensor((4,), torch.float32, "buffer")}
    captured = Capture({}, state, {}, {}, nn.Module(), True)
    context = models.context_without(Blocks((), {}), captured, (), "sliced")
    if not keeps:
        context.holdings.keeps = lambda name: False  # type: ignore[method-assign]
    program = program_of(build)
    before = models.text(program)
    after = models.text(DeadCode().run(program, context))
    assert models.text(program) == before, "the given program was changed"
    return after


def test_what_nobody_reads_goes_random_numbers_included() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        noise = graph.call_function(aten.rand_like.default, (x,))
        graph.call_function(aten.mul.Tensor, (noise, x))
        return graph.call_function(aten.relu.default, (x,))

    assert cleaned(build) == "relu_default = relu.default(x)\nreturn relu_default"


def test_a_write_counts_when_the_value_is_read_later() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        y = graph.call_function(aten.neg.default, (x,))
        view = graph.call_function(aten.select.int, (y, 0, 0))
        graph.call_function(aten.zero_.default, (view,))
        result = graph.call_function(aten.exp.default, (y,))
        graph.call_function(aten.relu_.default, (y,))
        return result

    assert cleaned(build) == (
        "neg_default = neg.default(x)\n"
        "select_int = select.int(neg_default, 0, 0)\n"
        "zero__default = zero_.default(select_int)\n"
        "exp_default = exp.default(neg_default)\n"
        "return exp_default"
    )


def test_a_write_to_a_dead_value_goes() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        noise = graph.call_function(aten.empty_like.default, (x,))
        graph.call_function(aten.bernoulli_.float, (noise, 0.5))
        return x

    assert cleaned(build) == "return x"


def test_a_write_to_what_is_returned_stays() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        y = graph.call_function(aten.neg.default, (x,))
        graph.call_function(aten.relu_.default, (y,))
        return y

    assert "relu_" in cleaned(build)


def test_a_write_to_the_callers_tensor_stays() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        graph.call_function(aten.relu_.default, (graph.call_function(aten.view.default, (x, [-1])),))
        return graph.call_function(aten.ones.default, ([2],))

    assert "relu_" in cleaned(build)


@pytest.mark.parametrize("keeps", [True, False])
def test_counters_stay_where_the_rank_holds_them(keeps: bool) -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        count = graph.create_node("get_attr", "count")
        graph.call_function(aten.add_.Tensor, (count, 1))
        return x

    expected = "count = count\nadd__tensor = add_.Tensor(count, 1)\n" if keeps else ""
    assert cleaned(build, keeps) == f"{expected}return x"


@pytest.mark.parametrize("keeps", [True, False])
def test_running_statistics_of_an_unused_normalisation_stay_where_the_rank_holds_them(keeps: bool) -> None:
    def build(graph: fx.Graph, x: fx.Node) -> fx.Node:
        mean = graph.create_node("get_attr", "mean")
        arguments = (x, None, None, mean, mean, True, 0.1, 1e-5, False)
        graph.call_function(aten.batch_norm.default, arguments)
        return x

    assert ("batch_norm" in cleaned(build, keeps)) is keeps
