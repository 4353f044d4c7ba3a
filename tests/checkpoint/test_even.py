"""What all workers share is written by all of them, each its part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdp_compile as sdp
from sdp_compile.checkpoint import model as models
from tests.distributed import run_workers

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")

WORKERS = 4
TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6]])


class Embedded(nn.Module):
    """Most of it is an embedding, which no family cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(997, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return (x + self.down(torch.relu(self.up(x)))) * self.scale


def saves(rank: int, folder: Path, redundancy: str, sharded: bool) -> Any:
    models._LEAST_BYTES = 1000
    torch.manual_seed(0)
    compiled = sdp.compile(Embedded(), sdp.NeuronPolicy(coverage=0.5), (TOKENS,))
    optimizer: torch.optim.Optimizer
    if sharded:
        optimizer = sdp.ShardedOptimizer(compiled, torch.optim.AdamW)
    else:
        optimizer = torch.optim.AdamW(compiled.parameters())
    compiled(TOKENS + rank).square().mean().backward()
    optimizer.step()
    sdp.save_checkpoint(folder, compiled, optimizer, step=1, redundancy=redundancy)  # type: ignore[call-overload]
    expected = compiled.full_state_dict(), compiled.full_optimizer_state_dict(optimizer)
    del compiled, optimizer
    return expected


@pytest.mark.parametrize(("redundancy", "sharded"), [("none", False), ("owners", False), ("none", True)])
def test_no_worker_writes_the_whole_of_a_large_shared_parameter(redundancy: str, sharded: bool, tmp_path: Path) -> None:
    model, optimizer = run_workers(saves, WORKERS, tmp_path, redundancy, sharded)[0]
    manifest = json.loads((tmp_path / "step-00000001" / "manifest.json").read_text())["checkpoint"]
    states = manifest["optimizer"]["tensors"]
    for entry in (manifest["model"]["embed.weight"], states["embed.weight"]["exp_avg"]):
        written = [0] * WORKERS
        for chunk in entry["chunks"]:
            written[manifest["files"][chunk["file"]]["worker"]] += chunk["nbytes"]
        whole = 997 * 8 * 4
        if redundancy == "owners":
            assert written == [whole] * WORKERS
        else:
            assert sum(written) == whole and max(written) - min(written) <= 2 * 8 * 4
    for name, parts in (("down.bias", 1), ("up.bias", 4)):  # small ones stay whole, or as they are cut
        assert len({tuple(chunk["offsets"]) for chunk in manifest["model"][name]["chunks"]}) == parts
    dense = Embedded()
    stepped = torch.optim.AdamW(dense.parameters())
    sdp.load_checkpoint(tmp_path, dense, stepped)
    assert all(torch.equal(value, model[name]) for name, value in dense.state_dict().items())
    for name, parameter in dense.named_parameters():
        for key, value in stepped.state[parameter].items():
            assert torch.equal(value, optimizer["state"][name][key]), (name, key)
