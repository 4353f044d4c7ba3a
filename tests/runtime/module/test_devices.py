"""A module that moves to an accelerator leaves nothing behind, shown on fake CUDA tensors, which need no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from sdp_compile import NeuronPolicy, sdp_compile
from sdp_compile.runtime.module.sdp_module import SDPModule
from tests.library_models import MODELS, Example
from tests.runtime.module.small import compiled


class Placed(nn.Module):
    """Names devices in all the ways that follow the module: factories, a copy, an autocast region, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.up(x) + torch.tensor([0.5, 2.0]).to(x.device).sum()
        with torch.autocast(x.device.type, enabled=False):
            hidden = hidden * torch.ones((), device=x.device).to(x.device, x.dtype)
        return self.down(hidden) + torch.arange(6, device=x.device)


EXAMPLES: dict[str, Callable[[], Example]] = {
    "placed": lambda: (Placed(), (torch.randn(4, 6),), {}),
    **{name: MODELS[name] for name in ("llama", "gpt2", "bert", "swin_t")},
}


def device_types(graph: fx.Graph) -> set[str]:
    """The device types that a graph names."""
    found: set[str] = set()

    def look(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            found.add(leaf.type)
        elif leaf in ("cpu", "cuda"):
            found.add(leaf)
        return leaf

    for node in graph.nodes:
        fx.node.map_aggregate((node.args, node.kwargs), look)
    return found


def moved(module: SDPModule, inputs: Any, dtype: torch.dtype) -> Any:
    """The module and its inputs on a fake CUDA device; returns the inputs."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(tensor, device="cuda", dtype=dtype if tensor.is_floating_point() else tensor.dtype)

    module._apply(move)
    return pytree.tree_map_only(torch.Tensor, move, inputs)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_moved_graph_holds_no_constant_of_the_old_device(name: str) -> None:
    model, args, kwargs = EXAMPLES[name]()
    module = sdp_compile(model, NeuronPolicy(coverage=0.5), kwargs or args, workers=2, rank=1)
    assert any(device_types(program.graph) == {"cpu"} for program in module.programs.values()) or name == "swin_t"
    with FakeTensorMode(allow_non_fake_inputs=True):
        args, kwargs = moved(module, (args, kwargs), torch.float32)
        for training in (True, False):
            output = module.train(training)(*args, **kwargs)
            assert getattr(output, "logits", output).device.type == "cuda"
            assert device_types(module.graph) <= {"cuda"}
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"cuda"}


@pytest.mark.parametrize("name", ["placed", "llama"])
def test_a_capture_in_another_dtype_is_made_for_the_new_device(name: str) -> None:
    model, args, kwargs = EXAMPLES[name]()
    module = sdp_compile(model, NeuronPolicy(coverage=0.5), kwargs or args, workers=2, rank=1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        args, kwargs = moved(module, (args, kwargs), torch.bfloat16)
        output = module(*args, **kwargs)
        output = getattr(output, "logits", output)
    assert (output.device.type, output.dtype) == ("cuda", torch.bfloat16)
    assert device_types(module.graph) <= {"cuda"}
    assert {tensor.device.type for tensor in (*module.parameters(), *module.buffers())} == {"cuda"}


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
