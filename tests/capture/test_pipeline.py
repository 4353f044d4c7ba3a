"""Capture as a whole: the graphs compute what the eager model computes, and the model is left as it is."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture, recapture
from sdp_compile.errors import CaptureError
from sdp_compile.ir.program import Mode, Precision
from tests.capture.models import Residual, Then, calls, run

aten = torch.ops.aten


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_graph_computes_what_the_model_computes(mode: Mode) -> None:
    model = Residual()
    captured = capture(model, (torch.randn(4, 6),))
    expected, x = copy.deepcopy(model).train(mode == "train"), torch.randn(5, 6)
    wanted, got = expected(x), run(model, captured, mode, x)
    assert got.keys() == wanted.keys() and got["none"] is None
    for key in ("y", "loss", "old"):
        assert torch.equal(got[key], wanted[key]), key
    (wanted["loss"] + wanted["y"].sum()).backward()
    (got["loss"] + got["y"].sum()).backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, dict(expected.named_parameters())[name].grad), name
    for name, buffer in expected.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], buffer), name


def test_graph_is_clean() -> None:
    captured = capture(Residual(), (torch.randn(4, 6),))
    targets = [node.target for node in calls(captured)]
    leftovers = {aten._assert_tensor_metadata.default, aten.lift_fresh_copy.default, aten.detach_.default}
    assert not leftovers & set(targets)
    assert all(not isinstance(target, torch._ops.HigherOrderOperator) for target in targets)
    for node in calls(captured):
        if node.target is not aten.copy_.default:
            assert ("val" in node.meta and "stack_trace" in node.meta) or node.target is aten.detach.default


def test_keywords_and_nested_inputs() -> None:
    model = Residual()
    inputs = {"x": torch.randn(4, 6), "extra": {"a": {"b": torch.randn(4, 6)}}, "bias": 0.5}
    captured = capture(model, inputs)
    assert captured.programs["train"].constants == {2: 0.5}
    other = {"x": torch.randn(3, 6), "extra": {"a": {"b": torch.randn(3, 6)}}, "bias": 0.5}
    expected = copy.deepcopy(model)(**other)["y"]
    assert torch.equal(run(model, captured, "train", **other)["y"], expected)


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.BatchNorm1d(6)).eval()
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    torch.manual_seed(3), random.seed(3)
    expected = torch.rand(3), random.random()
    torch.manual_seed(3), random.seed(3)
    captured = capture(model, torch.randn(4, 6, generator=torch.Generator()))
    assert torch.equal(torch.rand(3), expected[0]) and random.random() == expected[1]
    assert not model.training and not captured.training
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert id(tensor) == before[name][0] and torch.equal(tensor, before[name][1])
    assert all(tensor.is_meta for tensor in captured.skeleton.state_dict().values())


def test_a_batch_of_one_leaves_the_batch_size_free() -> None:
    model = nn.Linear(6, 6)
    captured = capture(model, torch.randn(1, 6))
    for batch in (1, 2, 5):
        x = torch.randn(batch, 6)
        assert torch.equal(run(model, captured, "train", x), model(x))
    assert captured.programs["train"].inputs[0].dims == ("n0", 6)


def test_a_model_for_batches_of_one_only_is_captured_for_these_and_says_so() -> None:
    model = Then(lambda y: y.view(6) * 2)
    captured = capture(model, torch.randn(1, 6))
    assert any("batches of size 1 only" in note for note in captured.notes)
    x = torch.randn(1, 6)
    assert torch.equal(run(model, captured, "eval", x), model(x))


@pytest.mark.parametrize("inputs_device", ["cpu", "meta"])
def test_meta_models_yield_graphs_that_run(inputs_device: str) -> None:
    with torch.device("meta"):
        model = Residual()
    captured = capture(model, torch.empty(4, 6, device=inputs_device))
    assert all(parameter.is_meta for parameter in model.parameters())
    real, x = Residual(), torch.randn(5, 6)
    assert torch.equal(run(copy.deepcopy(real), captured, "train", x)["y"], real(x)["y"])


def test_modules_keep_a_mode_of_their_own_in_the_mode_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    model[1].eval()
    captured = capture(model, torch.randn(4, 6))
    assert not captured.notes and not captured.skeleton[1].training  # type: ignore[index]
    updates = {mode: "add_" in program.graph.python_code("self").src for mode, program in captured.programs.items()}
    assert updates == {"train": False, "eval": False}
    model.eval()
    captured = capture(model, torch.randn(4, 6))
    assert "add_" in captured.programs["train"].graph.python_code("self").src, "what train() makes of it"


class Casting(nn.Module):
    """Casts to float32 and back, as the norms of Llama do: which casts there are depends on the dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("offset", torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x).float() + self.offset.float()
        return (y * torch.tensor([1.0, 2, 3, 4, 5, 6])).to(x.dtype)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_recaptured_in_another_dtype_the_graph_is_that_of_the_model_in_it(mode: Mode) -> None:
    model = Casting()
    captured = capture(model, torch.randn(4, 6))
    precision = Precision((torch.bfloat16,), None, ((torch.float32, torch.bfloat16),))
    again = recapture(captured, mode, precision, torch.device("cpu"))
    model.bfloat16().train(mode == "train")
    x = torch.randn(5, 6, dtype=torch.bfloat16)
    assert torch.equal(run(model, again, mode, x), model(x)) and model(x).dtype == torch.bfloat16
    assert again.state["linear.weight"].dtype == again.state["offset"].dtype == torch.bfloat16
    assert again.constants.keys() == captured.constants.keys(), "constants keep their names"
    other: Mode = "eval" if mode == "train" else "train"
    assert again.programs[other] is captured.programs[other]
    assert captured.state["linear.weight"].dtype == torch.float32, "the earlier capture is not changed"


def test_capture_takes_the_autocast_state_of_the_caller() -> None:
    """The model asks for the dtype of its own activation: another graph with autocast than without."""
    model, x = Then(lambda y: y * 2 if y.dtype == torch.bfloat16 else y - 1), torch.randn(4, 6)
    with torch.autocast("cpu", torch.bfloat16):
        captured = capture(model, x)
        assert captured.programs["train"].precision.autocast == torch.bfloat16
        assert torch.equal(run(model, captured, "train", x), model(x))
    plain = recapture(captured, "train", Precision((torch.float32,)), torch.device("cpu"))
    assert torch.equal(run(model, plain, "train", x), model(x))


def test_a_failed_capture_names_the_model() -> None:
    with pytest.raises(CaptureError, match=r"Then cannot be captured.*test_pipeline\.py"):
        capture(Then(lambda y: y.reshape(7, 7)), torch.randn(4, 6))
