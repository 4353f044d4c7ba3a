"""In training, what is summed over cut units is multiplied by workers / owners."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from sdp_compile import BlockPolicy, NeuronPolicy, Policy, sdp_compile
from sdp_compile.passes import Rescale, SliceParameters, Verify
from sdp_compile.passes.rescale import contractions
from sdp_compile.structure.families import Structure
from tests.oracle import randomise
from tests.passes.programs import context_of, lines, rewritten

aten = torch.ops.aten

MLP = """
    x: f32[3, 4] = placeholder
    up: f32[4, 4] = get_attr[up.weight]
    down: f32[4, 4] = get_attr[down.weight]
    linear: f32[3, 4] = aten.linear(x, up)
    relu: f32[3, 4] = aten.relu(linear)
    linear_1: f32[3, 4] = aten.linear(relu, down)
    return linear_1"""


def test_the_activation_that_meets_a_cut_parameter_is_scaled() -> None:
    """Two workers with one owner per unit: the factor is 2, along dimension 1 of the activation."""
    assert rewritten(context_of(MLP, NeuronPolicy(replicas=1, rescale=True)), Rescale()) == lines("""
        x: f32[3, 4] = placeholder
        up: f32[4, 4] = get_attr[up.weight]
        down: f32[4, 4] = get_attr[down.weight]
        linear: f32[3, 4] = aten.linear(x, up)
        relu: f32[3, 4] = aten.relu(linear)
        rescale: f32[3, 4] = scaling.rescale(relu, 2.0, 1)
        linear_1: f32[3, 4] = aten.linear(rescale, down)
        return linear_1""")


class Uneven(Policy):
    """Units with one owner, with two, and with one."""

    def partition(self, structure: Structure, workers: int) -> Mapping[str, Sequence[Collection[int]]]:
        return {family.name: [[0], [0, 1], [1], [0]] for family in structure.families if family.kind == "axis"}


def test_units_with_different_numbers_of_owners_have_factors_of_their_own() -> None:
    """Worker 0 owns the units 0, 1 and 3."""
    context = context_of(MLP, Uneven(rescale=True))
    assert rewritten(context, Rescale(), SliceParameters(), Verify(marks=False)) == lines("""
        x: f32[3, 4] = placeholder
        up: f32[3, 4] = get_attr[up.weight]
        down: f32[4, 3] = get_attr[down.weight]
        linear: f32[3, 3] = aten.linear(x, up)
        relu: f32[3, 3] = aten.relu(linear)
        rescale: f32[3, 3] = scaling.rescale(relu, (2.0, 1.0, 2.0), 1)
        linear_1: f32[3, 4] = aten.linear(rescale, down)
        return linear_1""")


def test_the_output_of_a_kept_block_is_scaled() -> None:
    """The second block is dropped, and left to the pass that drops blocks."""
    text = """
        x: f32[3, 4] = placeholder
        first: f32[4, 4] = get_attr[first.weight]
        second: f32[4, 4] = get_attr[second.weight]
        linear: f32[3, 4] = aten.linear(x, first)
        add: f32[3, 4] = aten.add.Tensor(x, linear)
        linear_1: f32[3, 4] = aten.linear(add, second)
        add_1: f32[3, 4] = aten.add.Tensor(add, linear_1)
        return add_1"""
    assert rewritten(context_of(text, BlockPolicy(replicas=1, rescale=True)), Rescale()) == lines("""
        x: f32[3, 4] = placeholder
        first: f32[4, 4] = get_attr[first.weight]
        second: f32[4, 4] = get_attr[second.weight]
        linear: f32[3, 4] = aten.linear(x, first)
        rescale: f32[3, 4] = scaling.rescale(linear, 2.0, 0)
        add: f32[3, 4] = aten.add.Tensor(x, rescale)
        linear_1: f32[3, 4] = aten.linear(add, second)
        add_1: f32[3, 4] = aten.add.Tensor(add, linear_1)
        return add_1""")


def test_evaluation_and_policies_without_rescale_are_left_as_they_are() -> None:
    evaluated = context_of(MLP, NeuronPolicy(replicas=1, rescale=True), mode="eval")
    assert Rescale().run(evaluated.analysis.programs["eval"], evaluated) is evaluated.analysis.programs["eval"]
    plain = context_of(MLP, NeuronPolicy(replicas=1))
    assert Rescale().run(plain.analysis.programs["train"], plain) is plain.analysis.programs["train"]


class Perceptron(nn.Module):
    """Two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.relu(self.up(x)))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Perceptron(), Perceptron()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)
        return x + self.second(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("policy", [NeuronPolicy(replicas=1, rescale=True), BlockPolicy(replicas=1, rescale=True)])
def test_rescale_equals_hooks_on_the_eager_model(policy: Policy) -> None:
    """N / owners = 2 on what enters a contraction with a cut parameter, or on a kept block's output."""
    model = Residual().double()
    randomise(model)
    x = torch.randn(2, 4, dtype=torch.double)
    module = sdp_compile(model, policy, (x,), workers=2, rank=0)
    handles = []
    for branch in (model.first, model.second):
        if isinstance(policy, NeuronPolicy):
            handles.append(branch.down.register_forward_pre_hook(lambda _, args: (args[0] * 2,)))
        else:
            handles.append(branch.register_forward_hook(lambda _, __, output: output * 2))
    model.train()
    masked = {name: p * module.plan.mask(name, 0) for name, p in model.named_parameters()}
    expected = torch.func.functional_call(model, masked, (x,))
    assert torch.allclose(module.train()(x), expected, rtol=1e-12, atol=1e-12)
    for handle in handles:
        handle.remove()
    expected = torch.func.functional_call(model.eval(), masked, (x,))
    assert torch.allclose(module.eval()(x), expected, rtol=1e-12, atol=1e-12)
    assert {entry.factors[0] for entry in module.plan.rescales(0)} == {2.0}


def contracted(target: Any, x: torch.Tensor, weight: torch.Tensor, view: Any = None) -> list[tuple[str, int]]:
    """What is contracted where ``target`` takes an input and a parameter seen through ``view``."""
    graph = fx.Graph()
    operands = [graph.placeholder("x"), graph.get_attr("weight")]
    for node, value in zip(operands, (x, weight), strict=True):
        node.meta["val"] = value
    if view is not None:
        operands[1] = graph.call_function(view[0], (operands[1], *view[1:]))
        operands[1].meta["val"] = view[0](weight, *view[1:])
    node = graph.call_function(target, tuple(operands))
    return [(activation.name, dim) for activation, dim in contractions(node)]


@pytest.mark.parametrize(
    ("target", "x", "weight", "dim"),
    [
        (aten.linear.default, (2, 3, 4), (5, 4), 2),
        (aten.matmul.default, (2, 3, 4), (4, 5), 2),
        (aten.conv2d.default, (2, 3, 6, 6), (5, 3, 1, 1), 1),
        (aten.conv1d.default, (3, 6), (5, 3, 1), 0),
    ],
)
def test_the_dimension_that_is_summed_over(target: Any, x: Any, weight: Any, dim: int) -> None:
    assert contracted(target, torch.empty(x), torch.empty(weight)) == [("x", dim)]


@pytest.mark.parametrize(
    "view",
    [
        (aten.t.default,),
        (aten.transpose.int, 0, 1),
        (aten.permute.default, [1, 0]),
        (aten.mT.default,),
        (aten.mH.default,),
        (aten.adjoint.default,),
    ],
)
def test_a_transposed_parameter_is_a_parameter(view: Any) -> None:
    assert contracted(aten.mm.default, torch.empty(2, 4), torch.empty(5, 4), view) == [("x", 1)]


def test_a_conjugated_parameter_is_a_parameter() -> None:
    weight = torch.empty(5, 4, dtype=torch.complex64)
    assert contracted(aten.linear.default, torch.empty(2, 4), weight, (aten._conj.default,)) == [("x", 1)]


def test_a_cast_parameter_is_a_parameter() -> None:
    view = (aten.to.dtype, torch.float64)
    assert contracted(aten.linear.default, torch.empty(2, 4), torch.empty(5, 4), view) == [("x", 1)]


def test_a_computed_weight_is_not_a_parameter() -> None:
    assert contracted(aten.linear.default, torch.empty(2, 4), torch.empty(5, 4), (aten.exp.default,)) == []
