"""The last pass runs the graph on fake tensors of the worker's shapes, and compares it with the analysis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from sdp_compile import BlockPolicy, LoweringError, NeuronPolicy
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.passes import MaskParameters, PassContext, SliceParameters, SyncGradients, Verify
from tests.passes.programs import context_of, lines, rewritten

ONE_OWNER = NeuronPolicy(replicas=1)

HEADS = """
    x: f32[n0, 6] = placeholder
    project: f32[8, 6] = get_attr[project.weight]
    merge: f32[6, 8] = get_attr[merge.weight]
    bias: f32[6] = get_attr[merge.bias]
    batch: n0 = aten.sym_size.int(x, 0)
    linear: f32[n0, 8] = aten.linear(x, project)
    view: f32[n0, 4, 2] = aten.view(linear, [batch, 4, 2])
    softmax: f32[n0, 4, 2] = aten.softmax.int(view, 2)
    view_1: f32[n0, 8] = aten.view(softmax, [batch, 8])
    linear_1: f32[n0, 6] = aten.linear(view_1, merge, bias)
    return linear_1"""
"""Four heads of size 2; one worker of two has two of them. The bias is averaged over both workers."""


def test_every_value_gets_the_worker_s_shape_at_the_example_s_size() -> None:
    assert rewritten(context_of(HEADS, ONE_OWNER), SliceParameters(), SyncGradients(), Verify()) == lines("""
        x: f32[5, 6] = placeholder
        project: f32[4, 6] = get_attr[project.weight]
        merge: f32[6, 4] = get_attr[merge.weight]
        bias: f32[6] = get_attr[merge.bias]
        batch: n0 = aten.sym_size.int(x, 0)
        linear: f32[5, 4] = aten.linear(x, project)
        view: f32[5, 2, 2] = aten.view(linear, [batch, 2, 2])
        softmax: f32[5, 2, 2] = aten.softmax.int(view, 2)
        view_1: f32[5, 4] = aten.view(softmax, [batch, 4])
        all_reduce_mean = marks.all_reduce_mean(bias, bucket=0, owners=(0, 1))
        getitem: f32[6] = getitem(all_reduce_mean, 0)
        linear_1: f32[5, 6] = aten.linear(view_1, merge, getitem)
        return linear_1""")


def test_the_full_model_s_values_are_kept_beside_them() -> None:
    context = context_of(HEADS, ONE_OWNER)
    program = context.analysis.programs["train"]
    for one in (SliceParameters(), Verify(marks=False)):
        program = one.run(program, context)
    (view,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.softmax.int)
    assert tuple(view.meta["val"].shape) == (5, 2, 2)
    assert tuple(view.meta["full_val"].shape)[1:] == (4, 2)


def test_masked_programs_keep_the_full_shapes() -> None:
    context = context_of(HEADS, ONE_OWNER, lowering="masked")
    assert "view: f32[5, 4, 2]" in rewritten(context, MaskParameters(), SyncGradients(), Verify())


def view_of_one_head(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
    nodes["view"].args = (nodes["linear"], [nodes["batch"], 1, 4])


def view_that_does_not_fit(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
    nodes["view"].args = (nodes["linear"], [nodes["batch"], 4, 2])


def no_output(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
    graph.output_node().args = ([],)


def no_input(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
    with graph.inserting_before(nodes["x"]):
        nodes["x"].replace_all_uses_with(graph.get_attr("project.weight"))
    graph.erase_node(nodes["x"])


def no_mark(graph: fx.Graph, nodes: dict[str, fx.Node]) -> None:
    nodes["getitem"].replace_all_uses_with(nodes["bias"])
    graph.eliminate_dead_code()


def edited(context: PassContext, edit: Callable[[fx.Graph, dict[str, fx.Node]], None]) -> Program:
    """Returns the program after all passes before `Verify`, and after ``edit``."""
    program = context.analysis.programs["train"]
    for one in (SliceParameters(), SyncGradients()):
        program = one.run(program, context)
    program = copy_program(program)
    edit(program.graph, {node.name: node for node in program.graph.nodes})
    return program


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (view_of_one_head, r"view.*yields the shape \(5, 1, 4\) on worker 0, but the analysis says \(5, 2, 2\)"),
        (view_that_does_not_fit, r"Worker 0's graph cannot run .*view"),
        (no_output, r"takes x and returns 0 values; the captured one takes x and returns 1"),
        (no_input, r"takes nothing and returns 1 values; the captured one takes x and returns 1"),
        (no_mark, r"gradient of 'merge\.bias' does not pass a mark of the owners \(0, 1\)"),
    ],
)
def test_a_wrong_graph_is_an_error_that_names_the_node(
    edit: Callable[[fx.Graph, dict[str, fx.Node]], None], message: str
) -> None:
    context = context_of(HEADS, ONE_OWNER)
    with pytest.raises(LoweringError, match=message):
        Verify().run(edited(context, edit), context)


def test_a_parameter_that_the_worker_lacks_cannot_be_read() -> None:
    text = """
        x: f32[3, 4] = placeholder
        first: f32[4, 4] = get_attr[first.weight]
        second: f32[4, 4] = get_attr[second.weight]
        linear: f32[3, 4] = aten.linear(x, first)
        add: f32[3, 4] = aten.add.Tensor(x, linear)
        linear_1: f32[3, 4] = aten.linear(add, second)
        add_1: f32[3, 4] = aten.add.Tensor(add, linear_1)
        return add_1"""
    context = context_of(text, BlockPolicy(replicas=1))
    with pytest.raises(LoweringError, match=r"still reads 'second\.weight', of which worker 0 owns nothing"):
        Verify(marks=False).run(context.analysis.programs["train"], context)
