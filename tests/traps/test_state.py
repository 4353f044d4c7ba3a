"""State of one worker that would be taken for the whole model's, and initial values that only rank 0 has."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import run_workers
from tests.traps.small import compiled, original, raised, train

WORKERS = 4


def refused(rank: int, folder: str) -> dict[str, tuple[str, bool]]:
    """The error of each call, and whether the full model is as before."""
    module = compiled()
    before = module.full_state_dict()
    file = Path(folder, "rank0.pt")
    if rank == 0:
        torch.save(module.state_dict(), file)
    dist.barrier()
    calls = {
        "ddp": lambda: DistributedDataParallel(module),
        "fsdp2": lambda: fully_shard(module),
        "zero_redundancy_optimizer": lambda: train(
            module, ZeroRedundancyOptimizer(module.parameters(), torch.optim.AdamW, lr=0.0, weight_decay=0.0), steps=1
        ),
        "dcp": lambda: dcp.save({"model": module.state_dict()}, checkpoint_id=Path(folder, "dcp")),
        "rank0_state_dict": lambda: module.load_state_dict(torch.load(file)),
    }
    found = {}
    for name, call in calls.items():
        error = raised(call)
        after = module.full_state_dict()
        found[name] = error, all(torch.equal(after[key], value) for key, value in before.items())
    return found


def pretrained_on_rank_0(rank: int) -> tuple[bool, list[str]]:
    pretrained = original(7)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        module = compiled(pretrained if rank == 0 else original(100 + rank))
    full = module.full_state_dict()
    equal = all(torch.equal(full[name], value) for name, value in pretrained.state_dict().items())
    return equal, [str(warning.message) for warning in found if "initial values" in str(warning.message)]


def everything(rank: int, folder: str) -> Any:
    return refused(rank, folder), pretrained_on_rank_0(rank)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    return run_workers(everything, WORKERS, str(tmp_path_factory.mktemp("state")))


@pytest.mark.parametrize(
    ("trap", "text"),
    [
        ("ddp", "DistributedDataParallel cannot take a module from sdp.compile()"),
        ("fsdp2", "fully_shard() cannot take a module from sdp.compile()"),
        ("zero_redundancy_optimizer", "Use sdp.ShardedOptimizer"),
        ("dcp", "Call sdp.save_checkpoint()"),
        ("rank0_state_dict", "load_full_state_dict() on every rank"),
    ],
)
def test_what_would_overwrite_slices_is_refused_and_changes_nothing(trap: str, text: str, found: list[Any]) -> None:
    for rank, (errors, _) in enumerate(found):
        error, is_unchanged = errors[trap]
        assert is_unchanged
        if (trap, rank) != ("rank0_state_dict", 0):  # its own file
            assert text in error


def test_weights_loaded_on_rank_0_only_reach_all_workers(found: list[Any]) -> None:
    assert all(equal for _, (equal, _) in found)
    assert any("different initial values" in text for _, (_, texts) in found for text in texts)
