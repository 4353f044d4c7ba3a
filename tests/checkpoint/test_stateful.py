"""A compiled model in the user's own checkpoint: ``dcp.save({"app": sdp.CheckpointState(model, optimizer)})``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

import sdp_compile as sdp
from tests.checkpoint.training import Run, same
from tests.distributed import run_workers

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")


def saved(rank: int, folder: Path, name: str, kind: str, sharded: bool, asynchronous: bool) -> Any:
    run = Run(name, kind, rank, sharded)
    run.train(2)
    expected = run.state()
    state = {"app": sdp.CheckpointState(run.model, run.optimizer), "step": 2}
    if asynchronous:
        # The thread of async_save has collectives of its own, which must not mix with those of training.
        future = dcp.async_save(state, checkpoint_id=folder, process_group=torch.distributed.new_group())
        torch.distributed.barrier()
        with torch.no_grad():  # what was staged does not follow
            for parameter in run.model.parameters():
                parameter.zero_()
        getattr(future, "upload_completion", future).result()
    else:
        dcp.save(state, checkpoint_id=folder)
    return expected


def loaded(rank: int, folder: Path, name: str, kind: str, sharded: bool, stepped: bool) -> Any:
    run = Run(name, kind, rank, sharded, seed=9)
    if stepped:
        run.train(1)
    state = {"app": sdp.CheckpointState(run.model, run.optimizer), "step": 0}
    dcp.load(state, checkpoint_id=folder)
    found = run.state()
    return found, state["step"], run.train(2)


@pytest.mark.parametrize(
    ("name", "first", "second", "asynchronous"),
    [
        ("transformer", ("neuron", False), ("neuron-backward", True), False),
        ("transformer", ("neuron-backward", True), ("block", False), True),
        ("cnn", ("block", False), ("neuron", True), True),
    ],
)
def test_the_full_state_goes_through(
    name: str, first: tuple[str, bool], second: tuple[str, bool], asynchronous: bool, tmp_path: Path
) -> None:
    expected = run_workers(saved, 4, tmp_path, name, *first, asynchronous)[0]
    for found, step, _ in run_workers(loaded, 2, tmp_path, name, *second, asynchronous):
        same(found, expected, leave_out=("scheduler",))
        assert step == 2
    dense = Run(name, "dense", seed=9)
    state = {
        "app": {
            "model": get_model_state_dict(dense.model),
            "optimizer": get_optimizer_state_dict(dense.model, dense.optimizer),
        }
    }
    dcp.load(state, checkpoint_id=tmp_path)
    for key, value in state["app"]["model"].items():
        assert torch.equal(value, expected[f"model {key}"]), key
    for key, entries in state["app"]["optimizer"]["state"].items():
        for part, value in entries.items():
            assert torch.equal(value, expected[f"optimizer {key} {part}"]), (key, part)
