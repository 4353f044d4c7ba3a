"""Capture: the graphs compute what the original eager model computes, and the model is left as it is."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from sdp_compile.capture import capture, retarget_devices
from sdp_compile.errors import CaptureError
from sdp_compile.ir.program import Capture, Mode

aten = torch.ops.aten


def run(model: nn.Module, captured: Capture, mode: Mode, *args: Any, **kwargs: Any) -> Any:
    """Interprets a captured graph node by node with the original's tensors: no generated code takes part."""
    program = captured.programs[mode]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), **captured.constants}

    class Run(fx.Interpreter):
        def fetch_attr(self, target: str) -> torch.Tensor:
            return tensors[target]

    flat = pytree.tree_leaves((args, kwargs))
    return pytree.tree_unflatten(Run(nn.Module(), graph=program.graph).run(*flat), program.out_spec)


def targets(captured: Capture, mode: Mode = "train") -> list[Any]:
    return [node.target for node in captured.programs[mode].graph.nodes if node.op == "call_function"]


class Residual(nn.Module):
    """BatchNorm, a tied pair of weights, a buffer that forward assigns, a constant and a region without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
        self.outer = nn.Linear(6, 6)
        self.outer.weight = self.inner[0].weight
        self.register_buffer("seen", torch.ones(6))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("scale", torch.arange(1.0, 7.0), persistent=False)

    def forward(self, x: torch.Tensor, *, extra: dict[str, torch.Tensor] | None = None, bias: float = 0.0) -> Any:
        with torch.no_grad():
            old = self.seen
            self.seen = self.seen + x.mean(0)  # in place it would clash with what autograd saved of the old one
            self.count += 1
            target = self.outer(x)
        y = x + self.inner(x) * self.scale + torch.tensor([1.0, 2, 3, 4, 5, 6]) + bias
        if extra is not None:
            y = y + extra["a"]["b"]
        return {"y": self.outer(y * old), "loss": ((y - target) ** 2).mean(), "none": None, "old": old}


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


def test_graph_is_clean() -> None:
    captured = capture(Residual(), (torch.randn(4, 6),))
    leftovers = {aten._assert_tensor_metadata.default, aten.lift_fresh_copy.default, aten.detach_.default}
    assert not leftovers & set(targets(captured))
    assert all(not isinstance(target, torch._ops.HigherOrderOperator) for target in targets(captured))
    for node in captured.programs["train"].graph.nodes:
        if node.op == "call_function" and node.target is not aten.copy_.default:
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


@pytest.mark.parametrize("inputs_device", ["cpu", "meta"])
def test_meta_models_yield_graphs_that_run(inputs_device: str) -> None:
    with torch.device("meta"):
        model = Residual()
    captured = capture(model, torch.empty(4, 6, device=inputs_device))
    assert all(parameter.is_meta for parameter in model.parameters())
    real, x = Residual(), torch.randn(5, 6)
    assert torch.equal(run(copy.deepcopy(real), captured, "train", x)["y"], real(x)["y"])


def test_values_outside_of_the_state_dict_survive() -> None:
    captured = capture(Residual(), torch.randn(4, 6))
    assert torch.equal(captured.skeleton.scale, torch.arange(1.0, 7.0))


def test_swin_keeps_its_batch_size_free_and_says_that_its_image_size_is_not() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [7, 7], num_classes=4)
    captured = capture(model, torch.empty(1, 3, 64, 64))
    assert captured.programs["train"].inputs[0].dims == ("n0", 3, 64, 64)
    assert any("leading input size" in note for note in captured.notes)


def test_frozen_parts_are_told() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    model[1].eval()
    with pytest.warns(UserWarning, match="'1' is in evaluation mode"):
        assert any("'1'" in note for note in capture(model, torch.randn(4, 6)).notes)


# Modes


class WithAutocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            exact = self.linear(x.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = self.linear(x)
        return exact + rough


@pytest.mark.parametrize("ambient", [True, False])
def test_autocast_regions_keep_their_mode(ambient: bool) -> None:
    model, x = WithAutocast(), torch.randn(4, 6)
    captured = capture(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ambient):
        assert torch.equal(run(model, captured, "train", x), model(x))


def test_devices_follow() -> None:
    class Positions(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(x.shape[1], device=x.device)

    graph = capture(Positions(), torch.randn(4, 6)).programs["train"].graph
    retarget_devices(graph, torch.device("cpu"), torch.device("meta"))
    result = fx.Interpreter(nn.Module(), graph=graph).run(torch.randn(4, 6, device="meta"))
    assert result[0].is_meta


# What a graph would lose, and what cannot be a graph


class Opposite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return -gradient


class Module(nn.Module):
    """A linear layer and a function of its output: the part under test."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.linear(x))


def with_hook(x: torch.Tensor) -> torch.Tensor:
    x.register_hook(lambda gradient: gradient * 2)
    return x * 1


def branch(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (Opposite.apply, ["Opposite", "test_capture.py", "custom_op"]),
        (with_hook, ["hook", "x.register_hook", "test_capture.py"]),
        (branch, ["x.sum() > 0", "test_capture.py", "torch.where"]),
        (lambda x: x[: int(x.sum())] * 2 if int(x.sum()) else x, ["int(x.sum())", "test_capture.py"]),
    ],
    ids=["autograd.Function", "tensor hook", "branch on values", "number from values"],
)
def test_what_cannot_be_captured_is_named(function: Callable[..., Any], words: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Module(function), torch.randn(4, 6))
    for word in words:
        assert word in str(caught.value)
    assert "__getattribute__" not in vars(torch.autograd.function.FunctionMeta), "the watch was not taken down"


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_keep_their_gradients(reentrant: bool) -> None:
    inner = nn.Linear(6, 6)
    model = Module(lambda x: checkpoint(inner, x, use_reentrant=reentrant))
    model.inner = inner  # the function above reaches it otherwise; still it must be trained
    captured, x = capture(model, torch.randn(4, 6)), torch.randn(4, 6)
    run(model, captured, "train", x).sum().backward()
    got = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model(x).sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad)
    assert any("checkpoint" in node.meta for node in captured.programs["train"].graph.nodes)


def test_modules_that_cannot_be_subnetworks_are_named() -> None:
    with pytest.raises(CaptureError, match="'1' is a SyncBatchNorm"):
        capture(nn.Sequential(nn.Linear(6, 6), nn.SyncBatchNorm(6)), torch.randn(4, 6))
    hooked = nn.Sequential(nn.Linear(6, 6))
    hooked[0].register_full_backward_hook(lambda *_: None)
    with pytest.raises(CaptureError, match=r"'0' \(Linear\) has a backward hook"):
        capture(hooked, torch.randn(4, 6))
    hooked = nn.Sequential(nn.Linear(6, 6))
    hooked[0].weight.register_hook(lambda gradient: gradient)
    with pytest.raises(CaptureError, match=r"'0.weight' has a gradient hook"):
        capture(hooked, torch.randn(4, 6))


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, ["'x'", "example_inputs=("]),
        ((), ["'x'", "missing"]),
        ((torch.randn(4, 6), 1, 2), ["too many positional"]),
        ({"y": torch.randn(4, 6)}, ["'x'"]),
        ((torch.randn(4, 5),), ["shapes", "test_capture.py"]),
        ("text", ["not str"]),
    ],
)
def test_wrong_example_inputs(inputs: Any, words: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Residual(), inputs)
    for word in words:
        assert word in str(caught.value)


def test_a_part_that_cannot_be_copied_is_named() -> None:
    import threading

    model = nn.Sequential(nn.Linear(6, 6))
    model[0].lock = threading.Lock()
    with pytest.raises(CaptureError, match="'lock' of '0'"):
        capture(model, torch.randn(4, 6))
