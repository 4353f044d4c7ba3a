"""SDPModule on the identity plan: it must be indistinguishable from the original eager model."""

from __future__ import annotations

import copy
import io
import pickle
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from sdp_compile import sdp_compile
from sdp_compile.errors import SDPError
from sdp_compile.runtime.module.sdp_module import SDPModule
from tests.library_models import MODELS, doubled
from tests.oracle import randomise, without_randomness
from tests.runtime.module.small import Small, assert_same, compiled


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


@pytest.fixture
def cut() -> SDPModule:
    """A worker that owns half of a hidden axis."""
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
    return sdp_compile(model, "neuron", torch.randn(4, 6), workers=2, rank=1)


def test_the_graph_view_shows_the_graph_that_runs(cut: SDPModule) -> None:
    rows = cut.inspect("graph").to_dict()["rows"]
    assert {row["name"] for row in rows} == {node.name for node in cut.graph.nodes if node.target is not getitem}
    state = {row["target"]: row for row in rows if row["kind"] == "state"}
    assert {name: tuple(row["shape"]) for name, row in state.items()} == {
        name: tuple(parameter.shape) for name, parameter in cut.named_parameters()
    }
    assert {name: tuple(row["full_shape"]) for name, row in state.items()} == {
        name: tensor.shape for name, tensor in cut.plan.state.items()
    }
    operators = [row["target"] for row in rows if row["kind"] == "compute"]
    assert operators == ["aten.linear.default", "aten.relu.default", "aten.linear.default"]


def test_the_owners_view_shows_what_the_masks_say(cut: SDPModule) -> None:
    found = cut.inspect("owners").to_dict()
    owned = [[int(cut.plan.mask(name, rank).sum()) for name in cut.plan.state] for rank in range(2)]
    assert {rank: one["parameters"] for one in found["classes"] for rank in one["workers"]} == {
        rank: 4 * sum(elements) for rank, elements in enumerate(owned)
    }
    (hidden,) = found["families"]
    assert hidden["owned"] == [int(cut.plan.mask("0.bias", rank).sum()) for rank in range(2)]
    assert found["digest"] == cut.plan.digest


def test_a_copy_from_a_pickle_shows_the_same(cut: SDPModule) -> None:
    again = pickle.loads(pickle.dumps(cut))
    for view in ("structure", "owners", "graph", "diff", "cost"):
        assert again.inspect(view).to_dict() == cut.inspect(view).to_dict()
        assert str(again.inspect(view)) == str(cut.inspect(view))


def test_the_report_page_and_unknown_views(cut: SDPModule, tmp_path: Path) -> None:
    cut.report(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(SDPError, match="structure, owners, graph, diff"):
        cut.inspect("nonsense")
    with pytest.raises(SDPError, match="there is none"):
        cut.inspect("phases")
