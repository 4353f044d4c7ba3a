"""Four models are captured, lowered and trained on fake CUDA tensors, which need no card: nothing stays on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sdp_compile import BlockPolicy, NeuronPolicy, sdp_compile
from sdp_compile.models.gpt import GPT, GPTConfig
from sdp_compile.models.llama import Llama, LlamaConfig
from tests.fake_backward import backward

pytestmark = pytest.mark.timeout(240)


class Placed(TorchDispatchMode):
    """Notes the operators whose results lie on the CPU, except single numbers, which eager code has there too."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += 1
        found = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        self.on_cpu += [str(func) for tensor in found if tensor.ndim and tensor.device.type == "cpu"]
        return result


def llama() -> tuple[nn.Module, Tensor]:
    return Llama(LlamaConfig(2, 64, 4, 128, 512, 64)), torch.randint(512, (2, 32))


def gpt2() -> tuple[nn.Module, Tensor]:
    return GPT(GPTConfig(2, 64, 4, 128, 512, 64, tied=True)), torch.randint(512, (2, 32))


def resnet50() -> tuple[nn.Module, Tensor]:
    models = pytest.importorskip("torchvision.models")
    return models.resnet50(), torch.randn(2, 3, 64, 64)


def swin() -> tuple[nn.Module, Tensor]:
    models = pytest.importorskip("torchvision.models")
    options = {"patch_size": [4, 4], "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": [7, 7]}
    return models.SwinTransformer(**options), torch.randn(2, 3, 64, 64)


def on_card(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cuda")


@pytest.mark.parametrize("masking", ["forward", "backward"])
@pytest.mark.parametrize("make", [llama, gpt2, resnet50, swin])
def test_a_model_trains_on_the_device_it_is_on(
    make: Callable[[], tuple[nn.Module, Tensor]], masking: Literal["forward", "backward"]
) -> None:
    policy = NeuronPolicy if make is not resnet50 else BlockPolicy
    model, x = make()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model._apply(on_card)
        x = on_card(x)
        module = sdp_compile(model, policy(masking=masking, coverage=0.5), (x,), workers=8, rank=1)
        with Placed() as placed:
            loss = module(x).float().mean()
            backward(loss)
    assert placed.count > 50
    assert not placed.on_cpu
    held = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.ndim]
    assert {tensor.device.type for tensor in held} == {"cuda"}
    gradients = [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None and gradient.device.type == "cuda" for gradient in gradients)
