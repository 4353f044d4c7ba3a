"""Which checkpoint of a folder is the newest does not depend on clocks, and is found whenever a process died."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import sdp_compile as sdp
from sdp_compile.checkpoint import folder as folders
from sdp_compile.checkpoint.coverage import lost_of_model
from sdp_compile.checkpoint.merge import merge
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.errors import SDPError
from sdp_compile.train.checkpoints import Checkpoints
from tests.checkpoint.training import Run
from tests.distributed import run_workers

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def run() -> Run:
    run = Run("transformer", "dense")
    run.train(1)
    return run


def load(path: Path) -> sdp.Restored:
    return Run("transformer", "dense", seed=3).load(path)


def test_a_clock_that_goes_back_loses_nothing(run: Run, tmp_path: Path) -> None:
    first = run.save(tmp_path, 1)
    later = (first / "manifest.json").stat().st_mtime + 3600
    os.utime(first / "manifest.json", (later, later))
    second = run.save(tmp_path, 2, keep=1)
    assert second.is_dir() and not first.exists() and load(tmp_path).step == 2


def test_a_copied_folder_has_the_same_order(run: Run, tmp_path: Path) -> None:
    for step in (1, 3, 2):
        run.save(tmp_path / "first", step)
    for step in (2, 3, 1):
        name = f"step-{step:08d}"
        shutil.copytree(tmp_path / "first" / name, tmp_path / "second" / name, copy_function=shutil.copyfile)
    assert load(tmp_path / "second").step == 2


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_process_that_dies_while_it_replaces_a_checkpoint_leaves_one(
    run: Run, tmp_path: Path, is_whole: bool
) -> None:
    place = run.save(tmp_path, 5, extra={"turn": 1})
    other = run.save(tmp_path / "other", 5, extra={"turn": 2})
    place.rename(tmp_path / ".step-00000005.old")
    shutil.copytree(other, tmp_path / ".step-00000005.new")
    if not is_whole:
        (tmp_path / ".step-00000005.new" / "order").unlink()
    turn = 2 if is_whole else 1
    assert load(tmp_path).extra == {"turn": turn}
    run.save(tmp_path, 6)
    assert {path.name for path in tmp_path.glob("*step*")} == {"step-00000005", "step-00000006"}
    assert load(place).extra == {"turn": turn}


def test_a_checkpoint_that_cannot_be_replaced_stays(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = run.save(tmp_path, 5, extra={"turn": 1})
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.endswith(".new"):
            raise OSError("the disk")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(SDPError, match="the disk"):
            run.save(tmp_path, 5, extra={"turn": 2})
    assert load(place).extra == {"turn": 1} and load(tmp_path).step == 5


def chosen(folder: Path, resume: str | None) -> Path | None:
    settings: Any = SimpleNamespace(
        checkpoint=folder, resume=resume, reset_lost_optimizer_state=False, local_checkpoint=False
    )
    worker: Any = SimpleNamespace(rank=0, peers=None)
    return Checkpoints(settings, worker, torch.optim.SGD([torch.zeros(1)]), None)._source()  # type: ignore[arg-type]


def test_a_run_goes_on_from_the_newest_intact_checkpoint(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert chosen(tmp_path, "auto") is None and chosen(tmp_path, None) is None
    first, second, third = (run.save(tmp_path, step) for step in (1, 2, 3))
    assert chosen(tmp_path, "auto") == third
    (third / "manifest.json").write_text("{}")
    manifest = Checkpoint(second).manifest
    chunk = next(iter(manifest.model.values())).chunks[0]
    file = second / manifest.files[chunk.file].name
    content = bytearray(file.read_bytes())
    content[chunk.start] ^= 1
    file.write_bytes(content)
    assert chosen(tmp_path, "auto") == first
    printed = capsys.readouterr().err
    assert "step-00000003" in printed and "step-00000002" in printed and "checksum" in printed
    with pytest.raises(SDPError, match=r"checkpoints of an earlier run, .*--resume auto"):
        chosen(tmp_path, None)
    shutil.rmtree(first)
    with pytest.raises(SDPError, match=r"No checkpoint in .* is intact"):
        chosen(tmp_path, "auto")


def test_states_keep_the_dtypes_that_they_were_saved_in(tmp_path: Path) -> None:
    model = nn.Linear(4, 3).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 4).bfloat16()).sum().backward()
    optimizer.step()
    state = optimizer.state[model.weight]
    state["exp_avg"] = torch.randn(3, 4)
    sdp.save_checkpoint(tmp_path, model, optimizer, step=1)
    again = nn.Linear(4, 3).bfloat16()
    other = torch.optim.AdamW(again.parameters())
    sdp.load_checkpoint(tmp_path, again, other)
    assert torch.equal(other.state[again.weight]["exp_avg"], state["exp_avg"])
    assert other.state[again.weight]["exp_avg_sq"].dtype == torch.bfloat16


class Averaging(nn.Module):
    """Keeps an average that is no running statistic of an operator."""

    average: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)
        self.register_buffer("average", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.down(torch.tanh(self.up(x)))
        self.average.mul_(0.5).add_(h.detach().mean(0))
        return h * torch.sigmoid(self.average)


def averaged(rank: int, folder: Path, redundancy: Any) -> list[float]:
    def started(seed: int) -> tuple[Any, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        module = sdp.compile(Averaging().double(), "neuron", (torch.randn(3, 4).double(),))
        return module, torch.optim.AdamW(module.parameters(), lr=1e-2)

    def trained(module: Any, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
        losses = []
        for step in steps:
            generator = torch.Generator().manual_seed(100 * rank + step)
            loss = module(torch.randn(3, 4, generator=generator).double()).square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    module, optimizer = started(0)
    trained(module, optimizer, range(3))
    sdp.save_checkpoint(folder, module, optimizer, step=3, redundancy=redundancy)
    expected = trained(module, optimizer, range(3, 6))
    again, other = started(1)
    sdp.load_checkpoint(folder, again, other)
    assert trained(again, other, range(3, 6)) == expected
    return expected


@pytest.mark.parametrize("redundancy", ["none", "owners"])
def test_buffers_that_forward_writes_are_each_worker_s_own(redundancy: str, tmp_path: Path) -> None:
    first, second = run_workers(averaged, 2, tmp_path, redundancy)
    assert first != second
    merge(tmp_path, tmp_path / "model.safetensors")
    (tmp_path / "step-00000003" / "__0_0.distcp").unlink()
    lost = {part.name for part in lost_of_model(Checkpoint(tmp_path))}
    assert "up.weight" in lost and ("average" in lost) is (redundancy == "none")


def test_a_checkpoint_of_torch_is_not_replaced(run: Run, tmp_path: Path) -> None:
    place = tmp_path / "step-00000004"
    dcp.save({"app": sdp.CheckpointState(run.model, run.optimizer)}, checkpoint_id=place)
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    with pytest.raises(SDPError, match="is none"):
        run.save(tmp_path, 4)
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    run.save(tmp_path, 5)
    run.save(tmp_path, 5)


def test_a_checkpoint_may_have_the_number_of_other_disks(tmp_path: Path) -> None:
    for step, order in ((1, None), (2, 7), (3, None)):
        staged = folders.begin(tmp_path, step, 0)
        (staged / "manifest.json").touch()
        folders.finish(staged, order)
    assert [folders.order_of(path) for path in folders.whole_checkpoints(tmp_path)] == [1, 7, 8]
    assert folders.newest_order(tmp_path) == 8 and folders.newest_order(tmp_path / "none") == 0
