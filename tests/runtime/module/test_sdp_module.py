"""SDPModule on the identity plan: it must be indistinguishable from the original eager model."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils import _pytree as pytree

from sdp_compile import sdp_compile
from sdp_compile.errors import SDPError
from sdp_compile.runtime.module.sdp_module import SDPModule
from tests.models import MODELS, doubled
from tests.oracle import randomise, without_randomness


def compiled(model: nn.Module, example_inputs: Any) -> SDPModule:
    """The model as the one worker of a plan that owns everything."""
    return sdp_compile(model, "neuron", example_inputs, workers=1, rank=0)


def loss(output: Any) -> torch.Tensor:
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return torch.stack([(leaf * torch.linspace(-1, 1, leaf.numel()).view(leaf.shape)).sum() for leaf in leaves]).sum()


def assert_same(module: nn.Module, original: nn.Module, call: Callable[[nn.Module], Any]) -> None:
    """Equal outputs (types too), gradients and buffers."""
    for model in (module, original):
        model.zero_grad()
    got, wanted = call(module), call(original)
    assert type(got) is type(wanted)
    torch.testing.assert_close(list(pytree.tree_leaves(got)), list(pytree.tree_leaves(wanted)), rtol=1e-10, atol=1e-10)
    if original.training:
        loss(got).backward()
        loss(wanted).backward()
    parameters = dict(module.named_parameters())
    for name, parameter in original.named_parameters():
        torch.testing.assert_close(parameters[name].grad, parameter.grad, rtol=1e-8, atol=1e-8, msg=name)
    buffers = dict(module.named_buffers())
    for name, buffer in original.named_buffers():
        torch.testing.assert_close(buffers[name], buffer, msg=name)


def other_sizes(kwargs: dict[str, Any], args: tuple[Any, ...], batch: int, length: int) -> tuple[Any, Any]:
    """The example inputs for another batch size, tokens also of another length."""

    def resize(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor[:1].expand(batch, *tensor.shape[1:]).clone()
        return tensor if tensor.ndim > 2 else tensor[:, :length]

    return pytree.tree_map_only(torch.Tensor, resize, (args, kwargs))


def vision(name: str) -> Any:
    """A torchvision architecture of two layers."""
    from torchvision.models import SwinTransformer, VisionTransformer
    from torchvision.models.resnet import BasicBlock, ResNet

    torch.manual_seed(0)
    model: nn.Module = {
        "resnet": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=4),
        "vit": lambda: VisionTransformer(32, 8, 2, 4, 24, 48, num_classes=4),
        "swin": lambda: SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=4),
    }[name]()
    return model, (torch.randn(2, 3, 32, 32),), {}


@pytest.mark.parametrize("name", ["resnet", "vit", "swin", "gpt2", "llama", "bert"])
def test_equals_the_original(name: str) -> None:
    model, args, kwargs = doubled(MODELS[name]() if name in MODELS else vision(name))
    randomise(without_randomness(model))
    if hasattr(model, "config"):
        model.config.use_cache = False  # a key-value cache has no place in a training program
    module = compiled(model, args or kwargs)
    assert list(module.state_dict()) == list(model.state_dict())
    assert [key for key, _ in module.named_parameters()] == [key for key, _ in model.named_parameters()]
    for training, batch, length in ((True, 2, 16), (True, 3, 11), (False, 1, 9)):
        module.train(training), model.train(training)
        other, keywords = other_sizes(dict(kwargs), args, batch, length)
        assert_same(module, model, lambda m, a=other, k=keywords: m(*a, **k))
    module.graph.lint()


class Small(nn.Module):
    """Dropout, BatchNorm, tied weights, containers in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
        self.empty = nn.ReLU()
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first[0].weight
        self.register_buffer("table", torch.arange(6.0), persistent=False)

    def forward(
        self, x: torch.Tensor, more: dict[str, torch.Tensor] | None = None, scale: float = 2.0
    ) -> dict[str, Any]:
        y = self.second(self.empty(self.first(x))) * scale + self.table
        return {"y": y if more is None else y + more["z"], "list": [x.sum(), None]}


@pytest.fixture
def small() -> Iterator[SDPModule]:
    torch.manual_seed(0)
    yield compiled(randomise(Small()), (torch.randn(4, 6),))


def test_modes_switch_behaviour_and_graph(small: SDPModule) -> None:
    x = torch.randn(8, 6)
    assert not torch.equal(small(x)["y"], small(x)["y"]), "dropout is active"
    train_code, count = small.code, small.first.get_submodule("1").num_batches_tracked.item()
    assert count == 2
    small.eval()
    assert torch.equal(small(x)["y"], small(x)["y"])
    assert small.first.get_submodule("1").num_batches_tracked.item() == count
    assert small.code != train_code and "dropout" in small.code and small.graph is small.programs["eval"].graph
    assert small.train().code == train_code
    assert "def forward" in small.print_readable(print_output=False)


def test_the_result_has_the_models_mode() -> None:
    assert not compiled(Small().eval(), torch.randn(4, 6)).training


def test_ties_stay(small: SDPModule) -> None:
    assert small.second.weight is small.first.get_parameter("0.weight")
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), small.to_empty(device="cpu")):
        assert other.second.weight is other.first.get_parameter("0.weight")


def test_copies_compute_the_same_and_share_nothing(small: SDPModule) -> None:
    small.eval()
    buffer = io.BytesIO()
    torch.save(small, buffer)
    buffer.seek(0)
    x = torch.randn(4, 6)
    expected = small(x)["y"]
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(x)["y"], expected) and not other.training
        assert list(other.state_dict()) == list(small.state_dict())
        assert other.train().graph.nodes.__len__() == len(small.programs["train"].graph.nodes)
        with torch.no_grad():
            other.eval().second.bias.add_(1)
        assert torch.equal(small(x)["y"], expected)
        assert other.code == small.code


def test_edited_graphs_take_effect(small: SDPModule) -> None:
    x = torch.randn(4, 6)
    small.eval()
    before = small(x)["y"]
    (node,) = [node for node in small.graph.nodes if node.target is torch.ops.aten.relu.default]
    node.replace_all_uses_with(node.args[0])
    small.graph.erase_node(node)
    small.recompile()
    assert not torch.equal(small(x)["y"], before)


def test_device_constants_follow_the_module() -> None:
    class Positions(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.arange(6, device=x.device)

    model = Positions(6, 6)
    module = compiled(model, torch.randn(4, 6))
    if torch.cuda.is_available():
        x = torch.randn(4, 6, device="cuda")
        torch.testing.assert_close(module.cuda()(x), model.cuda()(x))
        assert "cuda" in module.code and module.cpu()(x.cpu()).device.type == "cpu"
    assert "cpu" in module.code
    with torch.device("meta"):
        empty = Positions(6, 6)
    module = compiled(empty, torch.empty(4, 6)).to_empty(device="cpu")
    module.load_state_dict(model.cpu().state_dict())
    x = torch.randn(3, 6)
    assert torch.equal(module(x), model(x))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_model_that_returns_its_loss(name: str) -> None:
    model, _, inputs = doubled(MODELS[name]())
    without_randomness(randomise(model))
    model.config.use_cache = False  # a training program returns no cache
    labels = torch.randint(0, 50, inputs["input_ids"].shape, generator=torch.Generator().manual_seed(0))
    labels[0, :3] = -100  # ignored
    inputs = {**inputs, "labels": labels}
    module = compiled(model, inputs)
    assert_same(module, model, lambda one: one(**inputs))
    got, wanted = module(**inputs), model(**inputs)
    assert type(got) is type(wanted) and got.loss.shape == () and torch.allclose(got.loss, wanted.loss)
    longer = {name: torch.cat([value, value], 1) for name, value in inputs.items()}
    torch.testing.assert_close(module(**longer).loss, model(**longer).loss)


def test_what_it_is_can_be_seen(tmp_path: Path) -> None:
    module = sdp_compile(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6)), "neuron", torch.randn(4, 6), workers=2, rank=1
    )
    assert "linear" in str(module.inspect("graph")) and "50" in str(module.inspect("owners"))
    assert "2 workers" in str(module.plan)
    again = pickle.loads(pickle.dumps(module))
    assert str(again.inspect("diff")) == str(module.inspect("diff"))
    module.report(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(SDPError, match="structure, owners, graph, diff"):
        module.inspect("nonsense")


# Calls


def test_arguments_by_position_or_keyword() -> None:
    model = randomise(Small()).eval()
    x, more = torch.randn(4, 6), {"z": torch.randn(4, 6)}
    module = compiled(model, {"x": x, "more": more})
    expected = model(x, more)["y"]
    assert torch.equal(module(x, more)["y"], expected)
    assert torch.equal(module(x, more=more)["y"], expected)
    assert torch.equal(module(more=more, x=x)["y"], expected)
    assert torch.equal(module(x, more, 2.0)["y"], expected), "an argument at its default value need not be captured"


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, ["'x' is missing", "tensor[n0, 6]"]),
        ((torch.randn(4, 6), {"z": torch.randn(4, 6)}), {}, ["'more' was not part of the capture"]),
        ((torch.randn(4, 6),), {"scale": 3.0}, ["'scale' was not part of the capture"]),
        ((torch.randn(4, 6),), {"unknown": 3.0}, ["'unknown'"]),
        ((torch.randn(4, 6),), {"x": 3.0}, ["'x' was given twice"]),
        ((torch.randn(4, 6), None, 2.0, 1), {}, ["4 positional"]),
        ((torch.randn(4, 5),), {}, ["'x' has size 5 in dimension 1", "6"]),
        ((torch.randn(4, 6, 1),), {}, ["'x' has 3 dimensions where 2"]),
        ((3.0,), {}, ["'x' is 3.0 where a tensor"]),
    ],
)
def test_calls_that_were_not_captured(small: SDPModule, args: Any, kwargs: Any, words: list[str]) -> None:
    with pytest.raises(SDPError) as caught:
        small(*args, **kwargs)
    for word in ("Small", "Captured: (", *words):
        assert word in str(caught.value)


def test_other_containers_and_values_are_refused() -> None:
    x = torch.randn(4, 6)
    module = compiled(Small(), {"x": x, "more": {"z": x}, "scale": 3.0})
    with pytest.raises(SDPError, match="another structure"):
        module(x, {"other": x}, 3.0)
    with pytest.raises(SDPError, match=r"2\.0 where 3\.0 was captured"):
        module(x, {"z": x}, 2.0)


def test_sizes_that_must_agree() -> None:
    class Sum(nn.Linear):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.cat([x, y], 1)) if x.shape[0] > 3 else x * y

    module = compiled(Sum(6, 6), (torch.randn(4, 3), torch.randn(4, 3)))
    assert module(torch.randn(5, 3), torch.randn(5, 3)).shape == (5, 6)
    with pytest.raises(SDPError, match=r"size\(\)|must equal"):
        module(torch.randn(2, 3), torch.randn(2, 3))


def test_names_of_the_compiled_module_are_refused() -> None:
    model = nn.Sequential()
    model.add_module("plan", nn.Linear(6, 6))
    with pytest.raises(SDPError, match="'plan'"):
        compiled(model, torch.randn(4, 6))


# torch.compile


@pytest.mark.timeout(120)
def test_compiles_once_per_mode() -> None:
    model, _, kwargs = MODELS["gpt2"]()
    module, other = (compiled(model, kwargs) for _ in range(2))
    expected = model(**kwargs)
    torch._dynamo.reset()
    counter = CompileCounter()
    wrapped = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for _ in range(6):
        wrapped.train()
        output = wrapped(**kwargs)
        wrapped.eval()
        assert not module.training
        wrapped(**kwargs)
    assert counter.frame_count == 2
    tokens = kwargs["input_ids"][:, :9].repeat(2, 1)
    wrapped(input_ids=tokens, labels=tokens)
    assert counter.frame_count == 2, "another batch size and length"
    assert type(output) is type(expected)
    torch.testing.assert_close(output.loss, expected.loss)
    assert type(module).forward.__code__ != type(other).forward.__code__


@pytest.mark.timeout(120)
def test_compiled_training_equals_eager() -> None:
    model = randomise(Small())
    model.first[2].p = 0.0
    module, x = compiled(model, {"x": torch.randn(4, 6)}), torch.randn(4, 6)
    torch._dynamo.reset()
    torch.compile(module, fullgraph=True, backend="aot_eager")(x=x)["y"].square().sum().backward()
    model(x)["y"].square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, dict(model.named_parameters())[name].grad)
    torch.testing.assert_close(dict(module.named_buffers())["first.1.running_mean"], model.first[1].running_mean)


@pytest.mark.parametrize("fails", [True, False])
def test_a_failed_call_leaves_autocast_as_it_was(fails: bool) -> None:
    class Region(nn.Linear):
        def forward(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)[index]

    module = compiled(Region(6, 6), (torch.randn(4, 6), torch.tensor([0, 1])))
    nesting = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    index = torch.tensor([0, 9 if fails else 1])
    with pytest.raises(IndexError) if fails else contextlib.nullcontext():
        assert module(torch.randn(4, 6), index).dtype == torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")
    assert torch.autocast_increment_nesting() == nesting
    torch.autocast_decrement_nesting()
