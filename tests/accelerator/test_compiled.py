"""Subnetworks under torch.compile on the device."""

from __future__ import annotations

import pytest
import torch

from tests.accelerator.examples import RANK, example
from tests.oracle import assert_exact, run_compiled


@pytest.mark.parametrize(("name", "policy"), [("gpt2", "neuron"), ("resnet18", "backward neuron")])
def test_exact_under_torch_compile(name: str, policy: str, device: torch.device) -> None:
    given = example(name, device)
    module, plan = given.subnetwork(policy)
    module.compile()
    assert_exact(module, given.model, plan, RANK, given.args, given.kwargs)


def test_exact_in_captured_cuda_graphs(cuda: torch.device) -> None:
    """``mode="reduce-overhead"`` replays each call as one CUDA graph."""
    given = example("llama", cuda, torch.float32)
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
