"""Subnetworks under torch.compile on the device."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.accelerator.examples import RANK, example
from tests.oracle import assert_exact, relative_error, run_compiled, tensors_of


@pytest.mark.parametrize(("name", "policy"), [("llama", "neuron"), ("resnet18", "backward neuron")])
def test_exact_under_torch_compile(name: str, policy: str, device: torch.device) -> None:
    """As exact as the compiled original: Inductor computes some functions of float64 less precisely on CUDA."""
    given = example(name, device)
    module, plan = given.subnetwork(policy)
    module.compile()
    original = copy.deepcopy(given.model).eval()
    outputs = [tensors_of(run(*given.args, **given.kwargs)) for run in (original, torch.compile(original))]
    precision = max(relative_error(two, one) for one, two in zip(*outputs, strict=True))
    assert precision < 1e-5
    assert_exact(module, given.model, plan, RANK, given.args, given.kwargs, max(1e-9, 10 * precision))


def test_exact_in_captured_cuda_graphs(cuda: torch.device) -> None:
    """``mode="reduce-overhead"`` replays each call as one CUDA graph."""
    given = example("gpt2", cuda, torch.float32)
    module, _ = given.subnetwork("neuron")
    expected = run_compiled(module, given.args, given.kwargs)
    module.compile(mode="reduce-overhead")
    for _ in range(4):  # warm-up, recording, replays
        torch.compiler.cudagraph_mark_step_begin()
        found = run_compiled(module, given.args, given.kwargs)
        assert found.gradients.keys() == expected.gradients.keys()
        pairs = [*zip(found.outputs, expected.outputs, strict=True)]
        pairs += [(gradient, expected.gradients[name]) for name, gradient in found.gradients.items()]
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))
