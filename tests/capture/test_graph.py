"""From an exported program to a Program: names of state, inputs, outputs, constants and guards."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.capture.graph import Constants
from tests.capture.models import Residual, Then, gradients, run


def test_state_describes_the_original() -> None:
    model = Residual()
    captured = capture(model, (torch.randn(4, 6),))
    assert [n for n, t in captured.state.items() if t.kind == "parameter"] == [n for n, _ in model.named_parameters()]
    assert [n for n, t in captured.state.items() if t.kind == "buffer"] == [n for n, _ in model.named_buffers()]
    assert [n for n, t in captured.state.items() if not t.persistent] == ["scale", "_constant_0"]
    assert captured.aliases.keys() == model.state_dict().keys()
    assert captured.aliases["outer.weight"] == "inner.0.weight"
    assert list(captured.constants) == ["_constant_0"], "one constant for both modes"
    for program in captured.programs.values():
        attributes = [node.target for node in program.graph.nodes if node.op == "get_attr"]
        assert len(attributes) == len(set(attributes)) and set(attributes) <= captured.state.keys()


def test_inputs_are_named_and_their_sizes_related() -> None:
    class Related(nn.Module):
        def forward(self, x: torch.Tensor, twice: torch.Tensor, count: int, mask: torch.Tensor | None = None) -> Any:
            return torch.cat([x, x]) + twice

    captured = capture(Related(), (torch.randn(3, 5), torch.randn(6, 5), 7))
    program = captured.programs["train"]
    assert {index: (spec.name, spec.dims, spec.example) for index, spec in program.inputs.items()} == {
        0: ("x", ("n0", "n1"), (3, 5)),
        1: ("twice", (None, "n1"), (6, 5)),
    }
    assert program.constants == {2: 7} and program.guards, "that a size is twice another is a guard"


def test_outputs_are_flat_and_come_back_in_their_structure() -> None:
    model = Then(lambda y: {"first": (y, None, 3), "second": [y * 2]})
    captured, x = capture(model, torch.randn(4, 6)), torch.randn(5, 6)
    found, expected = run(model, captured, "train", x), model(x)
    assert torch.equal(found["first"][0], expected["first"][0]) and found["first"][1:] == (None, 3)
    assert torch.equal(found["second"][0], expected["second"][0])


def test_a_tensor_of_the_caller_is_written_as_the_model_writes_it() -> None:
    class Writing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2) + 1

    model, x = Writing(), torch.randn(4, 6)
    captured = capture(model, x.clone())
    mine, theirs = x.clone(), x.clone()
    assert torch.equal(run(model, captured, "train", mine), model(theirs)) and torch.equal(mine, theirs)


def test_parameters_that_code_reaches_otherwise_stay_parameters() -> None:
    """In a list or a closure, export would lift them as constants, which nothing trains."""
    hidden = nn.Linear(6, 6)
    model = Then(lambda y: y @ [hidden.weight][0] + hidden.bias)
    model.hidden = hidden
    captured, x = capture(model, torch.randn(4, 6)), torch.randn(4, 6)
    assert not captured.constants
    found, expected = gradients(model, run(model, captured, "train", x).sum()), gradients(model, model(x).sum())
    assert found["hidden.weight"].any() and all(torch.allclose(found[name], expected[name]) for name in expected)


def test_constants_are_told_apart_by_their_values() -> None:
    model = nn.Linear(2, 2)
    constants = Constants(model)
    assert constants.name(model.weight.detach()) == "weight", "the same memory is the same parameter"
    assert constants.name(model.weight.detach().clone()) == "_constant_0"
    assert constants.name(model.weight.detach().clone()) == "_constant_0"
    assert constants.name(torch.zeros(2, 2)) == "_constant_1"
    assert constants.name(torch.zeros(2, 2, dtype=torch.int64)) == "_constant_2"
    assert constants.name(torch.empty(2, device="meta")) == "_constant_3"
    known = Constants(model, constants.values)
    assert known.name(torch.zeros(2, 2)) == "_constant_1" and known.name(torch.ones(1)) == "_constant_4"


def test_a_buffer_that_forward_counts_in_is_written_once_per_call() -> None:
    model, x = nn.BatchNorm1d(6), torch.randn(4, 6)
    captured, expected = capture(model, x), copy.deepcopy(model)
    for _ in range(2):
        assert torch.equal(run(model, captured, "train", x), expected(x))
    for name, buffer in expected.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name
