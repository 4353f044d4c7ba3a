"""Switches of submodules, Python state in forward, and groups of parameters by the type of their module."""

from __future__ import annotations

import random
from typing import Any

import pytest
import timm
import timm.optim
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations, prune
from torch.optim import swa_utils
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


def pruned(module: sdp.SDPModule) -> None:
    prune.l1_unstructured(module.get_submodule("0"), "weight", 0.5)


def weight_normed(module: sdp.SDPModule) -> None:
    parametrizations.weight_norm(module.get_submodule("0"))


def with_averaged_statistics(module: sdp.SDPModule) -> None:
    swa_utils.update_bn([torch.randn(6, 8)], module)


def drawn_anew(module: sdp.SDPModule) -> None:
    module.get_submodule("0").reset_parameters()


def copied_in_inference_mode(module: sdp.SDPModule) -> None:
    with torch.inference_mode():
        compiled(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(6, 8))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (pruned, "Prune or parametrize the original model, and compile it again"),
        (weight_normed, "'0.weight' of a compiled model cannot be removed"),
        (
            with_averaged_statistics,
            r"momentum=None, as .*update_bn.* call sdp.calibrate\(model.full_model\(\), batches\)",
        ),
        (drawn_anew, r"reset_parameters\(\) of Linear needs the whole weights"),
        (copied_in_inference_mode, "Build and compile it outside"),
    ],
)
def test_what_graphs_would_not_see_is_refused(change: Any, text: str) -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    with pytest.raises(sdp.SDPError, match=text):
        change(compiled(model, torch.randn(6, 8)))


def test_statistics_are_reset_as_in_the_original() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    module = compiled(model, torch.randn(6, 8))
    module(torch.randn(6, 8))
    norm = module.get_submodule("1")
    assert norm.get_buffer("running_mean").count_nonzero() == 16
    norm.reset_running_stats()
    assert norm.get_buffer("running_mean").count_nonzero() == norm.get_buffer("num_batches_tracked") == 0
    assert (norm.get_buffer("running_var") == 1).all()


def test_gradients_of_each_sample() -> None:
    model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4)).double()
    module, x = compiled(model, torch.randn(6, 8).double()), torch.randn(6, 8).double()
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:  # one sample: captured again, within vmap
        result: Tensor = functional_call(module, parameters, (sample[None],)).square().sum()
        return result

    found = vmap(grad(loss), (None, 0))(parameters, x)
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name].sum(0), parameter.grad)
