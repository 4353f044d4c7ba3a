"""What modules keep in ``state_dict()`` besides tensors goes through a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn

import sdp_compile as sdp
from sdp_compile.checkpoint.merge import merge
from sdp_compile.errors import SDPError
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(120)


class Counting(nn.Module):
    """Scales by a number that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.scale = nn.Linear(4, 8), nn.Linear(8, 4), 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.down(torch.relu(self.up(x)))

    def get_extra_state(self) -> Any:
        return {"scale": self.scale, "seen": (1, 2.5)}

    def set_extra_state(self, state: Any) -> None:
        assert state["seen"] == (1, 2.5)
        self.scale = state["scale"]


def build(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(Counting(), Counting())


def test_a_dense_model_gets_it_back(tmp_path: Path) -> None:
    model, again, plain = build(0), build(1), build(2)
    model[0].scale, model[1].scale = 3, 5
    place = sdp.save_checkpoint(tmp_path, model, step=1)
    sdp.load_checkpoint(place, again)
    assert (again[0].scale, again[1].scale) == (3, 5)
    state = {"model": plain.state_dict()}
    dcp.load(state, checkpoint_id=place)
    plain.load_state_dict(state["model"])
    assert (plain[0].scale, plain[1].scale) == (3, 5)
    merged = merge(place, tmp_path / "model.safetensors")
    assert merged.extra == ("0._extra_state", "1._extra_state")
    assert set(load_file(merged.path)) == set(model.state_dict()) - set(merged.extra)


def test_other_modules_with_one_are_another_model(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Module(), Counting())
    for part in ("up", "down"):
        setattr(plain[0], part, getattr(Counting(), part))
    without = sdp.save_checkpoint(tmp_path / "without", plain, step=1)
    with_both = sdp.save_checkpoint(tmp_path / "both", build(0), step=1)
    with pytest.raises(SDPError, match=r"it lacks '0\._extra_state'"):
        sdp.load_checkpoint(without, build(1))
    with pytest.raises(SDPError, match=r"it has besides '0\._extra_state'"):
        sdp.load_checkpoint(with_both, plain)


def test_what_needs_a_pickle_is_refused(tmp_path: Path) -> None:
    model = build(0)
    model[0].scale = object()
    with pytest.raises(SDPError, match=r"get_extra_state\(\) of the model holds a builtins.object"):
        sdp.save_checkpoint(tmp_path, model, step=1)


def worker(rank: int, folder: Path) -> list[Any]:
    def compiled(seed: int) -> Any:
        return sdp.compile(build(seed), "neuron", (torch.zeros(3, 4),))

    def scales(module: Any) -> list[int]:
        return [module.get_submodule(name).get_extra_state()["scale"] for name in ("0", "1")]

    module, again = compiled(0), compiled(1)
    for number, name in enumerate(("0", "1")):
        module.get_submodule(name).set_extra_state({"scale": 10 * rank + number, "seen": (1, 2.5)})
    sdp.save_checkpoint(folder, module, step=1)
    sdp.load_checkpoint(folder, again)
    x = torch.randn(3, 4)
    assert torch.equal(module(x), again(x))
    return scales(again)


def test_each_worker_gets_its_own_and_others_the_first_one_s(tmp_path: Path) -> None:
    assert run_workers(worker, 2, tmp_path) == [[0, 1], [10, 11]]
    dense = build(1)
    sdp.load_checkpoint(tmp_path, dense)
    assert (dense[0].scale, dense[1].scale) == (0, 1)
