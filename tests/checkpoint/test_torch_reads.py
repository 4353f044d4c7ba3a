"""torch.distributed.checkpoint reads a checkpoint into the original model, also one that FSDP shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.checkpoint.training import Run, same
from tests.distributed import run_workers
from tests.runtime.models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")

CASES = [
    ("transformer", "neuron", False, "none"),
    ("transformer", "neuron-backward", True, "none"),
    ("cnn", "block", True, "owners"),
]


def saved(rank: int, folder: Path, name: str, kind: str, sharded: bool, redundancy: str) -> Any:
    run = Run(name, kind, rank, sharded)
    run.train(2)
    place = run.save(folder, 2, redundancy=redundancy)
    return place, run.state()


def load_with_torch(model: torch.nn.Module, optimizer: torch.optim.Optimizer, place: Path) -> None:
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=place)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def into_fsdp(rank: int, place: Path, name: str) -> Any:
    model = build(name, 9)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.5)
    load_with_torch(model, optimizer, place)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found = {f"model {key}": value for key, value in get_model_state_dict(model, options=options).items()}
    full = get_optimizer_state_dict(model, optimizer, options=options)
    for name, entries in full.get("state", {}).items():
        found.update({f"optimizer {name} {key}": value for key, value in entries.items()})
    return found, optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize(("name", "kind", "sharded", "redundancy"), CASES)
def test_torch_reads_it_into_the_original(name: str, kind: str, sharded: bool, redundancy: str, tmp_path: Path) -> None:
    place, expected = run_workers(saved, 4, tmp_path, name, kind, sharded, redundancy)[0]
    dense = Run(name, "dense", seed=9)
    load_with_torch(dense.model, dense.optimizer, place)
    same(dense.state(), expected, leave_out=("groups", "scheduler"))
    assert dense.optimizer.param_groups[0]["lr"] == expected["groups"][0]["lr"] == 5e-3

    found, lr = run_workers(into_fsdp, 2, place, name)[0]
    assert lr == 5e-3
    same(found, {key: value for key, value in expected.items() if key not in ("groups", "scheduler")})

    dcp_to_torch_save(place, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False)
    Run(name, "dense", seed=9).model.load_state_dict(whole["model"], strict=True)
    assert whole["optimizer"]["param_groups"][0]["params"] == expected["groups"][0]["params"]
