"""The abstract evaluator on small graphs: what is known of a result when some of its inputs are 0."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from sdp_compile.ir.effects import Effects
from sdp_compile.structure.blocks.zero import evaluate, outcomes_without
from sdp_compile.structure.operators.at_zero import Outcome

aten = torch.ops.aten
ZERO, FINITE, UNDEFINED = Outcome

Build = Callable[[Callable[..., fx.Node], fx.Node, fx.Node], fx.Node]

# Calls of `zero`, which is 0, and `other`, of which nothing is known, and what becomes of them.
CASES: dict[str, tuple[Build, Outcome]] = {
    "sum with another": (lambda call, zero, other: call(aten.add.Tensor, zero, other), FINITE),
    "sum of zeros": (lambda call, zero, other: call(aten.add.Tensor, zero, zero), ZERO),
    "sum with the number 0": (lambda call, zero, other: call(aten.add.Tensor, zero, 0), ZERO),
    "sum with another number": (lambda call, zero, other: call(aten.add.Tensor, zero, 1), FINITE),
    "product with another": (lambda call, zero, other: call(aten.mul.Tensor, other, zero), ZERO),
    "in place": (lambda call, zero, other: call(aten.relu_.default, zero), ZERO),
    "second name": (lambda call, zero, other: call(aten.multiply.Tensor, other, zero), ZERO),
    "python operators": (lambda call, zero, other: call(operator.add, zero, zero), ZERO),
    "sigmoid": (lambda call, zero, other: call(aten.sigmoid.default, zero), FINITE),
    "square root": (lambda call, zero, other: call(aten.sqrt.default, zero), UNDEFINED),
    "quotient": (lambda call, zero, other: call(aten.div.Tensor, zero, other), ZERO),
    "division by zero": (lambda call, zero, other: call(aten.div.Tensor, other, zero), UNDEFINED),
    "addcdiv by zero": (lambda call, zero, other: call(aten.addcdiv.default, other, other, zero), UNDEFINED),
    "hypotenuse of zeros": (lambda call, zero, other: call(aten.hypot.default, zero, zero), UNDEFINED),
    "hypotenuse": (lambda call, zero, other: call(aten.hypot.default, zero, other), FINITE),
    "angle of zeros": (lambda call, zero, other: call(aten.atan2.default, zero, zero), FINITE),
    "square": (lambda call, zero, other: call(aten.pow.Tensor_Scalar, zero, 2), ZERO),
    "power of 0": (lambda call, zero, other: call(aten.pow.Tensor_Scalar, zero, 0), FINITE),
    "root as a power": (lambda call, zero, other: call(aten.pow.Tensor_Scalar, zero, 0.5), UNDEFINED),
    "logit with a bound": (lambda call, zero, other: call(aten.logit.default, zero, 0.1), FINITE),
    "fill": (lambda call, zero, other: call(aten.fill.Scalar, other, 0), ZERO),
    "zeros like": (lambda call, zero, other: call(aten.zeros_like.default, other), ZERO),
    "list": (lambda call, zero, other: call(aten.cat.default, [zero, other]), FINITE),
    "list of zeros": (lambda call, zero, other: call(aten.cat.default, [zero, zero]), ZERO),
    "linear layer": (lambda call, zero, other: call(aten.linear.default, other, zero, zero), ZERO),
    "linear layer with a bias": (lambda call, zero, other: call(aten.linear.default, other, zero, other), FINITE),
    "bilinear layer": (lambda call, zero, other: call(aten.bilinear.default, zero, other, other, zero), ZERO),
    "bilinear layer with a bias": (
        lambda call, zero, other: call(aten.bilinear.default, zero, other, other, other),
        FINITE,
    ),
    "parts": (lambda call, zero, other: call(operator.getitem, call(aten.split.Tensor, zero, 2), 1), ZERO),
    "maximum": (lambda call, zero, other: call(operator.getitem, call(aten.max.dim, zero, 0), 0), ZERO),
    "position of it": (lambda call, zero, other: call(operator.getitem, call(aten.max.dim, zero, 0), 1), FINITE),
    "undefined for good": (
        lambda call, zero, other: call(aten.mul.Tensor, zero, call(aten.log.default, zero)),
        UNDEFINED,
    ),
    "linear algebra": (lambda call, zero, other: call(aten.linalg_inv.default, zero), UNDEFINED),
    "without zeros": (lambda call, zero, other: call(aten.linalg_inv.default, other), FINITE),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_known_of_a_result(case: str) -> None:
    build, expected = CASES[case]
    graph = fx.Graph()
    zero, other = graph.placeholder("zero"), graph.placeholder("other")
    build(lambda target, *args: graph.call_function(target, args), zero, other)
    values = {zero: ZERO}
    for node in graph.nodes:
        if node.op == "call_function":
            values[node] = evaluate(node, values)
    assert values[node] is expected


def region(build: Callable[[Callable[..., fx.Node], fx.Node], fx.Node]) -> tuple[fx.Node, list[fx.Node], Effects]:
    """A result, the nodes from a parameter ``weight`` to it, and the effects of the graph."""
    graph = fx.Graph()

    def call(target: Any, *args: Any) -> fx.Node:
        node = graph.call_function(target, args)
        node.meta["val"] = torch.empty(2)
        return node

    weight = graph.get_attr("weight")
    weight.meta["val"] = torch.empty(2)
    result = build(call, weight)
    graph.output(result)
    return result, [node for node in graph.nodes if node.op != "output"], Effects(graph)


def test_a_region_is_zero_without_its_parameters() -> None:
    result, nodes, effects = region(lambda call, weight: call(aten.tanh.default, weight))
    assert outcomes_without(nodes, {"weight"}, effects)[result] is ZERO
    assert outcomes_without(nodes, set(), effects)[result] is FINITE


def test_a_tensor_that_was_overwritten_in_part_is_no_longer_zero() -> None:
    def build(call: Callable[..., fx.Node], weight: fx.Node) -> fx.Node:
        copy = call(aten.clone.default, weight)
        row = call(aten.select.int, copy, 0, 0)
        call(aten.add_.Tensor, row, 1)
        return call(aten.tanh.default, copy)

    result, nodes, effects = region(build)
    assert outcomes_without(nodes, {"weight"}, effects)[result] is FINITE
