"""A wrong pass of a user is an error of `sdp.compile` that names the pass, wherever the pass stands."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import fx, nn

import sdp_compile as sdp
from sdp_compile import BlockPolicy, LoweringError, NeuronPolicy, PlanError, Policy
from sdp_compile.ir.program import Program, copy_program
from sdp_compile.ops import all_reduce_mean
from sdp_compile.passes import Pass, PassContext, pipeline, with_pass
from sdp_compile.planning.families import Masking
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.structure.families import Structure

aten = torch.ops.aten


class Residual(nn.Module):
    """Two branches with a hidden axis each, that the loss of the output depends on."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.second = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + self.first(x)
        return x + self.second(x), x * y


@dataclass(frozen=True)
class Wrong(Pass):
    """Does one thing to the graph that a pass must not do."""

    name = "wrong"
    edit: Callable[[fx.Graph], object]

    def run(self, program: Program, context: PassContext) -> Program:
        program = copy_program(program)
        self.edit(program.graph)
        return program


@dataclass(frozen=True)
class Returns(Pass):
    """Returns what is not a program."""

    name = "wrong"
    value: object = None

    def run(self, program: Program, context: PassContext) -> Any:
        return self.value


@dataclass(frozen=True, eq=False)
class Raises(Pass):
    """Raises an error of any kind."""

    name = "wrong"
    error: Exception

    def run(self, program: Program, context: PassContext) -> Program:
        raise self.error


def compiled(
    wrong: Pass,
    before: str,
    policy: Policy | None = None,
    lowering: LoweringKind = "sliced",
    masking: Masking = "forward",
) -> Any:
    policy = policy or NeuronPolicy(replicas=1, masking=masking)
    passes = with_pass(pipeline(lowering, policy.masking), wrong, before)
    inputs = torch.randn(3, 4), torch.randn(3, 4)
    return sdp.compile(Residual(), policy, inputs, workers=2, rank=0, lowering=lowering, passes=passes)


def first(graph: fx.Graph, target: object) -> fx.Node:
    """The first node of a target that somebody reads."""
    return next(node for node in graph.nodes if node.target is target and node.users)


def use_before_definition(graph: fx.Graph) -> None:
    first(graph, aten.relu.default).append(graph.find_nodes(op="placeholder")[0])


def another_shape(graph: fx.Graph) -> None:
    relu = first(graph, aten.relu.default)
    with graph.inserting_after(relu):
        shorter = graph.call_function(aten.narrow.default, (relu, 0, 0, 1))
    shorter.meta = {key: value for key, value in relu.meta.items() if key != "rewrites"}
    relu.replace_all_uses_with(shorter, delete_user_cb=lambda user: user is not shorter)


def operands_that_do_not_fit(graph: fx.Graph) -> None:
    relu = first(graph, aten.relu.default)
    with graph.inserting_after(relu):
        wrong = graph.call_function(aten.transpose.int, (relu, 0, 1))
    wrong.meta = {"val": relu.meta["val"].t()}
    relu.replace_all_uses_with(wrong, delete_user_cb=lambda user: user is not wrong)


def fewer_outputs(graph: fx.Graph) -> None:
    outputs = graph.output_node().args[0]
    graph.output_node().args = (list(outputs)[:1],)  # type: ignore[call-overload]


def fewer_inputs(graph: fx.Graph) -> None:
    x, y = graph.find_nodes(op="placeholder")
    y.replace_all_uses_with(x)
    graph.erase_node(y)


def a_parameter_that_does_not_exist(graph: fx.Graph) -> None:
    parameter = next(node for node in graph.nodes if node.target == "first.0.weight")
    parameter.target = "first.9.weight"


GRAPH_EDITS = [another_shape, operands_that_do_not_fit, fewer_outputs, fewer_inputs, a_parameter_that_does_not_exist]
PLACES = ["rescale", "slice_parameters", "verify"]
"""First, last before parameters are sliced, and last of all."""


@pytest.mark.parametrize("before", PLACES)
@pytest.mark.parametrize("edit", GRAPH_EDITS)
def test_a_pass_that_leaves_a_wrong_graph(edit: Callable[[fx.Graph], object], before: str) -> None:
    with pytest.raises(LoweringError, match=r"^Pass 'wrong' left a wrong graph: "):
        compiled(Wrong(edit), before)


@pytest.mark.parametrize(
    ("lowering", "masking", "before"),
    [
        ("masked", "forward", "zero_blocks"),
        ("masked", "forward", "mask_parameters"),
        ("masked", "backward", "mask_gradients"),
        ("sliced", "backward", "split_parameters"),
        ("sliced", "backward", "dead_code"),
    ],
)
@pytest.mark.parametrize("edit", [another_shape, a_parameter_that_does_not_exist])
def test_in_the_other_pipelines(
    edit: Callable[[fx.Graph], object], lowering: LoweringKind, masking: Masking, before: str
) -> None:
    with pytest.raises(LoweringError, match=r"^Pass 'wrong' left a wrong graph: "):
        compiled(Wrong(edit), before, lowering=lowering, masking=masking)


class Uneven(Policy):
    """The units of an axis differ in their number of owners, and workers in their number of units."""

    def partition(self, structure: Structure, workers: int) -> Mapping[str, Sequence[Collection[int]]]:
        return {family.name: [[0], [0, 1], [1], [0]] * 2 for family in structure.families if family.kind == "axis"}


@pytest.mark.parametrize("policy", [BlockPolicy(replicas=1, rescale=True), Uneven(rescale=True)])
@pytest.mark.parametrize("before", ["bypass_blocks", "verify"])
def test_passes_that_are_right_are_not_blamed(before: str, policy: Policy) -> None:
    """Before parameters are sliced, the factors of `Rescale` are the worker's, and activations are full."""
    assert compiled(Wrong(lambda graph: None), before, policy) is not None
    with pytest.raises(LoweringError, match=r"^Pass 'wrong' left a wrong graph: "):
        compiled(Wrong(fewer_outputs), before, policy)


def test_a_pass_that_leaves_an_invalid_graph() -> None:
    with pytest.raises(LoweringError, match=r"^Pass 'wrong' left an invalid graph: .*used before"):
        compiled(Wrong(use_before_definition), "sync_gradients")


@pytest.mark.parametrize("value", [None, fx.Graph()], ids=["None", "Graph"])
def test_a_pass_that_returns_no_program(value: object) -> None:
    with pytest.raises(LoweringError, match=rf"^Pass 'wrong' must return a Program, .* {type(value).__name__}\.$"):
        compiled(Returns(value), "sync_gradients")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("val"), "Pass 'wrong' failed with KeyError: 'val'"),
        (ZeroDivisionError("division by zero"), "Pass 'wrong' failed with ZeroDivisionError: division by zero"),
        (LoweringError("The graph has no loss."), "Pass 'wrong': The graph has no loss."),
        (PlanError("The plan cuts nothing."), "Pass 'wrong': The plan cuts nothing."),
    ],
)
def test_a_pass_that_raises(error: Exception, message: str) -> None:
    with pytest.raises(LoweringError) as raised:
        compiled(Raises(error), "sync_gradients")
    assert str(raised.value) == message and raised.value.__cause__ is error


def without_the_last_mark(graph: fx.Graph) -> None:
    mark = graph.find_nodes(op="call_function", target=all_reduce_mean)[-1]
    for item in list(mark.users):
        item.replace_all_uses_with(mark.args[item.args[1]])
        graph.erase_node(item)
    graph.erase_node(mark)


def test_a_pass_that_removes_a_mark() -> None:
    with pytest.raises(LoweringError, match=r"^Pass 'wrong' left a wrong graph: The gradient of '.*mark"):
        compiled(Wrong(without_the_last_mark), "verify")


def test_without_verify_nothing_is_blamed() -> None:
    """A pipeline of one's own may leave the check out; then a wrong graph fails when it runs, or not at all."""
    passes = [one for one in with_pass(pipeline(), Wrong(another_shape)) if one.name != "verify"]
    inputs = torch.randn(3, 4), torch.randn(3, 4)
    sdp.compile(Residual(), NeuronPolicy(replicas=1), inputs, workers=2, rank=0, passes=passes)
