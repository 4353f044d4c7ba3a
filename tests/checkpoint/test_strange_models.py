"""Models whose full state is more than their workers' slices put together."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import sdp_compile as sdp
from tests.distributed import run_workers
from tests.runtime.state.test_spectral import Model
from tests.runtime.state.test_state_hooks import Fused

pytestmark = pytest.mark.timeout(120)


def spectral(rank: int, folder: Path) -> Any:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    module = sdp.compile(Model(), sdp.NeuronPolicy(coverage=0.5), (torch.randn(6, 8),))
    optimizer = torch.optim.SGD(module.parameters(), 0.05)

    def train(steps: int) -> dict[str, Any]:
        torch.manual_seed(100 + rank)
        for _ in range(steps):
            optimizer.zero_grad()
            F.mse_loss(module(torch.randn(6, 8)), torch.randn(6, 2)).backward()
            optimizer.step()
        return {key: value.clone() for key, value in module.state_dict().items()}

    train(3)
    sdp.save_checkpoint(folder, module, optimizer, step=3)
    full = module.full_state_dict()
    expected = train(3)
    train(1)
    sdp.load_checkpoint(folder, module, optimizer)
    found = train(3)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    return full


def test_spectral_norms_are_those_of_the_whole_weights_and_the_worker_goes_on_with_its_own(tmp_path: Path) -> None:
    full = run_workers(spectral, 2, tmp_path)[0]
    model = Model().double()
    sdp.load_checkpoint(tmp_path, model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, full[key]), key


def hooked(rank: int, folder: Path) -> Any:
    torch.manual_seed(0)
    module = sdp.compile(Fused(), sdp.NeuronPolicy(coverage=0.5), (torch.randn(2, 3, 8),))
    warns = pytest.warns(UserWarning, match="has entries that are none of its parameters and buffers")
    with nullcontext() if rank else warns:  # once for the job
        sdp.save_checkpoint(folder, module, step=3)
    return module.full_state_dict()


def test_a_model_that_states_other_tensors_than_it_holds_comes_back(tmp_path: Path) -> None:
    full = run_workers(hooked, 2, tmp_path)[0]
    model = Fused()
    sdp.load_checkpoint(tmp_path, model)
    assert all(torch.equal(value, full[key]) for key, value in model.state_dict().items())
