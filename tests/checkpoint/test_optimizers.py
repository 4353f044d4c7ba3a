"""Optimizers whose state a checkpoint of the full model can hold, and those whose it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

import sdp_compile as sdp
from sdp_compile.checkpoint.stateful import WorkerSlice
from sdp_compile.errors import SDPError
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(150)


class Net(nn.Module):
    """A part of it never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.idle = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))


def trained(model: Any, optimizer: torch.optim.Optimizer, steps: int = 1) -> None:
    for _ in range(steps):

        def loss() -> Tensor:
            optimizer.zero_grad()
            result: Tensor = model(torch.randn(5, 4)).square().sum()
            result.backward()
            return result

        optimizer.step(loss)


def started(kind: Callable[..., torch.optim.Optimizer], names: str = "") -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Net()
    return model, kind([one for name, one in model.named_parameters() if name.startswith(names)])


def test_an_optimizer_of_other_parameters_than_the_saved_one_is_named(tmp_path: Path) -> None:
    for names, folder in (("", "all"), ("down", "part")):
        model, optimizer = started(torch.optim.AdamW, names)
        trained(model, optimizer)
        sdp.save_checkpoint(tmp_path / folder, model, optimizer, step=1)
    model, optimizer = started(torch.optim.AdamW, "down")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SDPError, match=r"of parameters that the optimizer does not have: up\.weight, up\.bias"):
        sdp.load_checkpoint(tmp_path / "all", model, optimizer)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    sdp.load_checkpoint(tmp_path / "part", model, optimizer)
    trained(model, optimizer)
    with pytest.raises(SDPError, match="lacks 4 parameters of group 0"):
        sdp.load_checkpoint(tmp_path / "part", *started(torch.optim.AdamW))


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.LBFGS])
def test_states_that_are_not_per_element_are_refused(kind: Any, tmp_path: Path) -> None:
    model, optimizer = started(kind)
    trained(model, optimizer)
    with pytest.raises(SDPError, match="cannot be assembled from slices"):
        sdp.save_checkpoint(tmp_path, model, optimizer, step=1)
    assert not list(tmp_path.glob("*step*"))


def compiled(seed: int) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = sdp.compile(Net(), "neuron", (torch.zeros(3, 4),))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-2)


def differing(rank: int, folder: Path) -> str:
    model, optimizer = compiled(0)
    trained(model, optimizer)
    for parameter, state in optimizer.state.items():
        state["trust"] = float(parameter.detach().norm())  # of this worker's slice
    with pytest.raises(SDPError) as raised:
        sdp.save_checkpoint(folder, model, optimizer, step=1)
    return str(raised.value)


def test_numbers_of_a_slice_are_no_state_of_the_full_model(tmp_path: Path) -> None:
    for text in run_workers(differing, 2, tmp_path):
        assert "he optimizer's state 'trust' of " in text and "differs between worker" in text, text


def saved(rank: int, folder: Path) -> dict[str, Tensor]:
    model, optimizer = compiled(0)
    trained(model, optimizer, 2)
    dcp.save({"app": sdp.CheckpointState(model, optimizer)}, checkpoint_id=folder)
    return dict(model.full_state_dict())


def loaded(rank: int, folder: Path) -> tuple[dict[str, Tensor], float]:
    model, optimizer = compiled(1)
    dcp.load({"app": sdp.CheckpointState(model, optimizer)}, checkpoint_id=folder)
    state = model.full_optimizer_state_dict(optimizer)["state"]
    trained(model, optimizer)
    return dict(model.full_state_dict()), float(state["up.weight"]["step"])


def test_a_parameter_that_never_had_a_gradient_is_no_obstacle(tmp_path: Path) -> None:
    """A new process cannot know which parameters those are."""
    expected = run_workers(saved, 4, tmp_path)[0]
    for found, step in run_workers(loaded, 2, tmp_path):
        assert step == 2
        assert torch.equal(found["idle.weight"], expected["idle.weight"])


def test_a_state_that_does_not_fit_leaves_the_model_as_it_was() -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    trained(model, optimizer)
    state = sdp.CheckpointState(model, optimizer)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def other() -> dict[str, Any]:
        """Other values than the model's, in memory of their own."""
        found = state.state_dict()
        found["model"] = {
            key: WorkerSlice.made(value.held + 1, value.shape, value.places) for key, value in found["model"].items()
        }
        return found

    groups, names = other(), other()
    groups["optimizer"]["param_groups"][0]["params"].pop()
    names["model"]["more.weight"] = names["model"]["up.weight"]
    for wrong in (groups, names):
        with pytest.raises(SDPError):
            state.load_state_dict(wrong)
        assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    state.load_state_dict(other())
    assert all(torch.equal(before[key] + 1, value) for key, value in model.state_dict().items())
