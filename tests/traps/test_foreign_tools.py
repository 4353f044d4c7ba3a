"""Tools that trace, export or quantize a model: they get this worker's subnetwork exactly, or name full_model()."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping, quantize_dynamic, quantize_fx
from torch.func import functional_call, stack_module_state
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.models.feature_extraction import create_feature_extractor

import sdp_compile as sdp

X = torch.randn(6, 8)


class Nested(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.model(x))
        return result


def original() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)).eval()


def compiled(model: nn.Module) -> sdp.SDPModule:
    return sdp.compile(model, sdp.NeuronPolicy(coverage=0.5), X, workers=2, rank=0)


class Quantized(Tensor):
    """A weight in another representation, as torchao's are."""


def with_a_quantized_weight(module: sdp.SDPModule) -> None:
    part = module.get_submodule("0")
    part.weight = part.get_parameter("weight").detach().as_subclass(Quantized)


REFUSED: dict[Callable[[Any], Any], str] = {
    torch.jit.script: r"torch\.jit\.script\(\)",
    lambda module: torch.jit.script(Nested(module)): r"torch\.jit\.script\(\)",
    torch.fx.symbolic_trace: r"torch\.fx\.symbolic_trace\(\)",
    lambda module: torch.fx.symbolic_trace(Nested(module)): r"torch\.fx\.symbolic_trace\(\)",
    lambda module: create_feature_extractor(module, ["0"]): r"feature extractors of torchvision",
    lambda module: quantize_fx.prepare_fx(module, get_default_qconfig_mapping(), (X,)): "FX quantization",
    lambda module: torch.export.export(module, (X,)): r"torch\.export\.export\(\).*strict=True",
    lambda module: quantize_dynamic(module, {nn.Linear}): "'qconfig' cannot be set: quantization",
    with_a_quantized_weight: "'0.weight' cannot become a Quantized",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", REFUSED)
def test_what_would_take_the_python_code_apart_names_full_model(tool: Callable[[Any], Any]) -> None:
    with pytest.raises(sdp.SDPError, match=REFUSED[tool]) as caught:
        tool(compiled(original()))
    assert "full_model()" in str(caught.value)


WORKING: dict[Callable[[Any], Any], str] = {
    lambda module: torch.jit.trace(module, (X,)): "jit.trace",
    lambda module: torch.export.export(module, (X,), strict=True).module(): "strict export",
    lambda module: make_fx(module)(X): "make_fx",
    lambda module: lambda x: functional_call(module, dict(module.named_parameters()), (x,)): "functional_call",
    lambda module: lambda x: functional_call(module, one_of_stack(module), (x,)): "stack_module_state",
}


def one_of_stack(module: nn.Module) -> dict[str, Tensor]:
    parameters, buffers = stack_module_state([module])  # type: ignore[list-item]
    return {name: tensor[0] for name, tensor in {**parameters, **buffers}.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", WORKING, ids=WORKING.values())
def test_what_runs_the_model_gets_the_worker_s_subnetwork(tool: Callable[[Any], Any]) -> None:
    model = original()
    module = compiled(model)
    masked = {name: parameter * module.plan.mask(name, 0) for name, parameter in model.named_parameters()}
    torch.testing.assert_close(tool(module)(X), functional_call(model, masked, (X,)))
    nested = Nested(module).eval()
    if tool is not list(WORKING)[-1]:
        torch.testing.assert_close(tool(nested)(X), nested.head(functional_call(model, masked, (X,))))
