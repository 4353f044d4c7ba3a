"""Subnetworks on the device compute what the original eager model computes there with masked parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdp_compile.checking.oracle import Run
from sdp_compile.compiler import assemble
from sdp_compile.lowering import lower
from sdp_compile.passes import pipeline
from sdp_compile.planning.making import make_plan
from sdp_compile.planning.plan import Plan
from tests.accelerator.examples import POLICIES, RANK, WORKERS, example
from tests.oracle import assert_exact, owned, relative_error, run_compiled, run_original

MODELS = [
    pytest.param(name, marks=pytest.mark.xdist_group(name))  # each is captured once
    for name in ("gpt2", "resnet18", "llama", "swin_t")
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MODELS)
def test_exact_in_float64(name: str, policy: str, device: torch.device) -> None:
    given = example(name, device)
    module, plan = given.subnetwork(policy)
    assert {tensor.device.type for tensor in module.state_dict().values()} == {device.type}
    assert_exact(module, given.model, plan, RANK, given.args, given.kwargs)


@pytest.mark.parametrize("policy", ["neuron", "backward neuron"])
@pytest.mark.parametrize("name", MODELS)
def test_as_exact_as_the_original_under_autocast(name: str, policy: str, device: torch.device) -> None:
    """In bfloat16 a subnetwork is about as far from float32 as the masked original is."""
    given = example(name, device, torch.float32)
    module, plan = given.subnetwork(policy)
    module.train(), given.model.train()

    def original(autocast: bool) -> Run:
        whole = plan.masking == "backward"
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return run_original(given.model, given.args, given.kwargs, lambda name: plan.mask(name, RANK) | whole)

    with torch.autocast(device.type, torch.bfloat16):
        found = run_compiled(module, given.args, given.kwargs)
    precise, rounded = original(False), original(True)
    for mine, theirs, true in zip(found.outputs, rounded.outputs, precise.outputs, strict=True):
        assert mine.dtype == theirs.dtype
        assert distance(mine, true) <= 1.5 * distance(theirs, true)
    mine, theirs, true = (gradients(run, plan) for run in (found, rounded, precise))
    assert distance(mine, true) <= 1.5 * distance(theirs, true)


def distance(found: torch.Tensor, true: torch.Tensor) -> float:
    found, true = found.double(), true.double()
    return float((found - true).norm() / true.norm())


def gradients(run: Run, plan: Plan) -> torch.Tensor:
    """All gradients of what the worker owns, of a run of the original or of the subnetwork."""
    parts = []
    for name, gradient in sorted(run.gradients.items()):
        wanted = plan.mask(name, RANK)
        parts.append(owned(gradient, plan, name, RANK) if gradient.shape == wanted.shape else gradient.reshape(-1))
    return torch.cat([part.reshape(-1) for part in parts])


class Convolutions(TorchDispatchMode):
    """Notes whether the results of convolutions are in channels-last."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "convolution" in str(func) and "backward" not in str(func):
            self.found.append(result.is_contiguous(memory_format=torch.channels_last))
        return result


@pytest.mark.xdist_group("resnet18")
@pytest.mark.parametrize("policy", ["neuron", "backward neuron"])
def test_channels_last(policy: str, device: torch.device) -> None:
    """A model in channels-last stays in it, and exact. PyTorch has no such kernels for float64 on CUDA."""
    for dtype in (torch.float64, torch.float32):
        given = example("resnet18", device, dtype)
        model = copy.deepcopy(given.model).to(memory_format=torch.channels_last)
        args = tuple(x.to(memory_format=torch.channels_last) for x in given.args)
        module, plan = given.subnetwork(policy)
        module.to(memory_format=torch.channels_last)
        if dtype == torch.float64:
            assert_exact(module, model, plan, RANK, args, {})
    with Convolutions() as convolutions:
        module(*args)
    assert len(convolutions.found) == 20 and all(convolutions.found)


@pytest.mark.parametrize("policy", ["neuron", "backward neuron"])
@pytest.mark.parametrize("name", [MODELS[0]])
def test_masked_lowering(name: str, policy: str, device: torch.device) -> None:
    given = example(name, device)
    plan = make_plan(given.analysis, POLICIES[policy], WORKERS)
    lowered = lower(given.analysis, plan, RANK, pipeline("masked", plan.masking))
    module = assemble(lowered, given.model)
    whole = plan.masking == "backward"
    for training in (True, False):
        given.model.train(training), module.train(training)
        expected = run_original(given.model, given.args, given.kwargs, lambda name: plan.mask(name, RANK) | whole)
        found = run_compiled(module, given.args, given.kwargs)
        for mine, theirs in zip(found.outputs, expected.outputs, strict=True):
            assert relative_error(mine, theirs) < 1e-9
        for name, gradient in expected.gradients.items():
            mask = plan.mask(name, RANK).to(device)
            assert relative_error(found.gradients[name] * mask, gradient * mask, 1e-6) < 1e-9, name


def test_on_the_device_as_on_the_cpu(device: torch.device) -> None:
    """A module that was compiled on the CPU can be moved."""
    given = example("gpt2", torch.device("cpu"))
    module, plan = given.subnetwork("neuron")
    module.to(device)
    model: nn.Module = copy.deepcopy(given.model).to(device)
    kwargs: dict[str, Any] = {key: value.to(device) for key, value in given.kwargs.items()}
    assert_exact(module, model, plan, RANK, (), kwargs)
