"""Checkpoints that torch.distributed.checkpoint wrote of the original model, for those who trust them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict

import sdp_compile as sdp
from sdp_compile.errors import SDPError
from tests.checkpoint.training import Run, same
from tests.distributed import run_workers
from tests.runtime.models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")


def write(folder: Path, prefix: str, name: str = "transformer") -> Run:
    """Trains the original and saves it with torch alone."""
    run = Run(name, "dense")
    run.train(2)
    model, optimizer = get_state_dict(run.model, run.optimizer)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    dcp.save({prefix: state} if prefix else state, checkpoint_id=folder)
    return run


def loaded(rank: int, folder: Path, name: str, kind: str, sharded: bool) -> Any:
    run = Run(name, kind, rank, sharded, seed=5)
    with pytest.raises(SDPError, match="trusted=True"):
        sdp.load_checkpoint(folder, run.model, run.optimizer)
    with pytest.raises(SDPError, match="leave out scheduler="):
        sdp.load_checkpoint(folder, run.model, run.optimizer, scheduler=run.scheduler, trusted=True)
    restored = sdp.load_checkpoint(folder, run.model, run.optimizer, trusted=True)
    assert (restored.step, restored.samples, restored.path) == (0, None, folder)
    return run.state()


@pytest.mark.parametrize(
    ("prefix", "name", "kind", "sharded"),
    [
        ("", "transformer", "neuron", False),
        ("app", "transformer", "neuron-backward", True),
        ("app", "cnn", "block", False),
    ],
)
def test_workers_read_their_parts(prefix: str, name: str, kind: str, sharded: bool, tmp_path: Path) -> None:
    expected = write(tmp_path, prefix, name).state()
    for found in run_workers(loaded, 3, tmp_path, name, kind, sharded):
        same(found, expected, leave_out=("scheduler", "groups"))
        assert [group["lr"] for group in found["groups"]] == [group["lr"] for group in expected["groups"]]


def test_the_original_reads_it_too_and_the_model_may_stand_alone(tmp_path: Path) -> None:
    expected = write(tmp_path / "both", "")
    run = Run("transformer", "dense", seed=5)
    sdp.load_checkpoint(tmp_path / "both", run.model, run.optimizer, trusted=True)
    same(run.state(), expected.state(), leave_out=("scheduler", "groups"))
    dcp.save(expected.model.state_dict(), checkpoint_id=tmp_path / "alone")
    model = build("transformer", 7)
    sdp.load_checkpoint(tmp_path / "alone", model, trusted=True)
    assert all(torch.equal(value, expected.model.state_dict()[key]) for key, value in model.state_dict().items())
    with pytest.raises(SDPError, match="it lacks 'state"):
        sdp.load_checkpoint(tmp_path / "alone", run.model, run.optimizer, trusted=True)
    with pytest.raises(SDPError, match=r"is that of another model: it lacks '.*stem.weight'"):
        sdp.load_checkpoint(tmp_path / "alone", build("cnn"), trusted=True)
    plain = torch.optim.SGD(model.parameters(), lr=0.5)
    dcp.save(
        dict(zip(("model", "optimizer"), get_state_dict(model, plain), strict=True)), checkpoint_id=tmp_path / "sgd"
    )
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    sdp.load_checkpoint(tmp_path / "sgd", model, other, trusted=True)
    assert other.param_groups[0]["lr"] == 0.5


def test_our_own_checkpoints_are_never_read_as_a_pickle(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit('code ran')",)

    run = Run("transformer", "dense")
    place = run.save(tmp_path, 1)
    (place / ".metadata").write_bytes(pickle.dumps(Bomb()))
    assert sdp.load_checkpoint(tmp_path, run.model, run.optimizer, trusted=True).step == 1


def test_what_torch_cannot_read_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "")
    (tmp_path / "__0_0.distcp").unlink()
    run = Run("transformer", "dense")
    with pytest.raises(SDPError, match="cannot be loaded"):
        sdp.load_checkpoint(tmp_path, run.model, run.optimizer, trusted=True)
    (tmp_path / ".metadata").write_bytes(b"nothing")
    with pytest.raises(SDPError, match="has no description that PyTorch can read"):
        sdp.load_checkpoint(tmp_path, run.model, run.optimizer, trusted=True)
