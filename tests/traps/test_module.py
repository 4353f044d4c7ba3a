"""Switches of submodules, Python state in forward, and groups of parameters by the type of their module."""

from __future__ import annotations

import random
from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import sdp_compile as sdp

POLICY = sdp.NeuronPolicy(coverage=0.5)


def compiled(model: nn.Module, inputs: Any) -> sdp.SDPModule:
    return sdp.compile(model, POLICY, inputs, workers=2, rank=0)


def test_a_frozen_batch_norm_a_hook_and_isinstance() -> None:
    module = compiled(
        nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(6, 8)
    )
    x, norm = torch.randn(6, 8), module.get_submodule("1")
    norm.eval()
    before, mean = module(x), norm.get_buffer("running_mean").clone()
    assert torch.equal(norm.get_buffer("running_mean"), mean)
    module.get_submodule("3").register_forward_hook(lambda part, args, output: output * 2)
    torch.testing.assert_close(module(x), before * 2)
    assert sum(isinstance(part, nn.BatchNorm1d) for part in module.modules()) == 1
    calls: list[int] = []
    module.get_submodule("0").register_forward_hook(lambda *args: calls.append(1))
    with pytest.raises(sdp.CaptureError, match=r"changes .*'calls'.*calls\.append"):
        module(x)


class Stateful(nn.Module):
    """Warms up over two calls, or draws its sign."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)
        self.calls, self.temperature, self.draws = 0, 1.0, draws

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.first(x).relu()) / self.temperature
        if self.draws:
            return y if random.random() < 0.5 else -y
        self.calls += 1
        return y * (0.0 if self.calls <= 2 else 1.0)


def test_python_state_is_refused_and_settings_count() -> None:
    with pytest.raises(sdp.CaptureError, match="draws from Python's random"):
        compiled(Stateful(draws=True), torch.randn(6, 8))
    with pytest.raises(sdp.CaptureError, match=r"self\.calls \+= 1"):
        compiled(Stateful(draws=False), torch.randn(6, 8))

    class Tempered(Stateful):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.first(x).relu()) / self.temperature
            return result

    module, x = compiled(Tempered(draws=False), torch.randn(6, 8)), torch.ones(2, 8)
    before = module(x)
    module.temperature = 0.1
    torch.testing.assert_close(module(x), before * 10)


def decayed(model: Any) -> set[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = timm.optim.create_optimizer_v2(model, opt="adamw", weight_decay=0.05).param_groups
    return {names[parameter] for group in groups if group["weight_decay"] for parameter in group["params"]}


def test_weight_decay_goes_by_the_original_types(tmp_path: Any) -> None:
    config = GPT2Config(n_layer=1, n_embd=32, n_head=4, vocab_size=64, n_positions=32, use_cache=False)
    config.bos_token_id = config.eos_token_id = 0
    model, ids = GPT2LMHeadModel(config), torch.randint(0, 64, (4, 16))
    module = compiled(model, {"input_ids": ids, "labels": ids})
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    found = [set(Trainer(model=one, args=arguments).get_decay_parameter_names(one)) for one in (model, module)]
    assert found[0] == found[1] and found[0]

    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, num_classes=4)
    assert decayed(compiled(vit, torch.randn(2, 3, 32, 32))) == decayed(vit)
