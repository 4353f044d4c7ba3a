"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import sdp_compile as sdp
from sdp_compile.checkpoint import background, writing
from sdp_compile.checkpoint import folder as folders
from sdp_compile.errors import DistributedError, SDPError
from tests.checkpoint.training import Run, same
from tests.distributed import run_workers

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")

WORKERS = 3


class Gate:
    """Writing waits until it is opened; a worker may fail instead."""

    def __init__(self, fails: bool = False) -> None:
        self._real, self._open, self._fails = writing._write, threading.Event(), fails
        writing._write = self

    def __call__(self, *args: Any) -> Any:
        assert self._open.wait(60)
        if self._fails:
            raise OSError(errno.ENOSPC, "No space left on device", "the disk")
        return self._real(*args)

    def open(self) -> None:
        self._open.set()

    def remove(self) -> None:
        writing._write = self._real
        self.open()


def trains_on(rank: int, folder: Path, kind: str, sharded: bool, redundancy: str) -> None:
    torch.manual_seed(100 + rank)
    run = Run("cnn" if kind == "block" else "transformer", kind, rank, sharded)
    run.train(2)
    gate = Gate()
    saving = run.save(folder, 2, asynchronous=True, redundancy=redundancy)
    assert isinstance(saving, sdp.Saving) and saving.path == folder / "step-00000002"
    expected = run.state()
    losses = run.train(3)  # with their collectives, while the threads of all workers wait
    rest = run.state(), torch.rand(3)
    assert not saving.done() and not saving.path.exists()
    gate.remove()
    assert saving.wait() == saving.path and saving.done() and saving.path.is_dir()
    name = run.name
    del run
    resumed = Run(name, kind, rank, sharded, seed=5)
    assert resumed.load(folder).step == 2
    same(resumed.state(), expected)
    assert resumed.train(3) == losses
    same(resumed.state(), rest[0])
    assert torch.equal(torch.rand(3), rest[1])


@pytest.mark.parametrize(
    ("kind", "sharded", "redundancy"),
    [
        ("neuron", False, "none"),
        ("neuron", True, "owners"),
        ("neuron-backward", True, "none"),
        ("block", False, "none"),
    ],
)
def test_training_goes_on_while_the_state_of_before_is_written(
    kind: str, sharded: bool, redundancy: str, tmp_path: Path
) -> None:
    run_workers(trains_on, WORKERS, tmp_path, kind, sharded, redundancy)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000002", ".lock"}


def fails(rank: int, folder: Path, failing: int, waits: bool) -> str:
    run = Run("transformer", "neuron", rank)
    run.train(1)
    run.save(folder, 1)
    gate = Gate(fails=rank == failing)
    saving = run.save(folder, 2, asynchronous=True)
    gate.open()
    if waits:
        with pytest.raises(SDPError) as raised:
            saving.wait()
        gate.remove()
    else:
        run.train(1)
        gate.remove()
        with pytest.raises(SDPError) as raised:
            run.save(folder, 3, asynchronous=True)
    run.save(folder, 4, asynchronous=True, keep=2)
    run.train(1)
    assert run.load(folder).step == 4  # waits for it
    return str(raised.value)


@pytest.mark.parametrize("failing", [0, 2])
@pytest.mark.parametrize("waits", [True, False])
def test_a_worker_that_cannot_write_is_an_error_on_all(failing: int, waits: bool, tmp_path: Path) -> None:
    for rank, text in enumerate(run_workers(fails, WORKERS, tmp_path, failing, waits)):
        assert "sdp.save_checkpoint(): the disk: No space left on device." in text
        assert rank == failing or f"orker {failing} failed in sdp.save_checkpoint()" in text
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "step-00000004", ".lock"}


def test_a_worker_that_stood_still_does_not_write_into_the_next_attempt(tmp_path: Path) -> None:
    run = Run("transformer", "dense")
    gate = Gate()
    saving = run.save(tmp_path, 2, asynchronous=True)
    # The others gave up meanwhile, and new processes save the same step.
    shutil.rmtree(next(tmp_path.glob(".step-*")))
    staged = folders.begin(tmp_path, 2, 0, "other")
    gate.remove()
    with pytest.raises(SDPError, match="No such file or directory"):
        saving.wait()
    assert staged.is_dir() and not list(staged.iterdir())


def hangs(rank: int, folder: Path) -> str:
    run = Run("transformer", "neuron", rank)
    run.save(folder, 1)
    gate = Gate()
    saving = run.save(folder, 2, asynchronous=True)
    if rank == 1:
        time.sleep(8)  # as if it was killed
        return ""
    gate.remove()
    with pytest.raises(SDPError) as raised:
        saving.wait()
    return str(raised.value)


def test_workers_do_not_wait_forever_for_one_that_ended(tmp_path: Path) -> None:
    texts = run_workers(hangs, WORKERS, tmp_path, timeout=4)
    for text in (texts[0], texts[2]):
        assert "sdp.save_checkpoint(): worker 1 did not write for 4 s." in text
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", ".lock"}


def differs(rank: int, folder: Path) -> str:
    run = Run("transformer", "neuron", rank)
    with pytest.raises(SDPError) as raised:
        run.save(folder, 1, asynchronous=rank == 0)
    return str(raised.value)


def test_all_workers_save_in_the_same_way(tmp_path: Path) -> None:
    assert all("asynchronous=True" in text for text in run_workers(differs, 2, tmp_path))
    assert not list(tmp_path.glob("*step*"))


SCRIPT = """
import sys, time
from sdp_compile.checkpoint import writing
from tests.checkpoint.training import Run
run = Run("transformer", "dense")
run.train(1)
run.save(sys.argv[1], 1)
real = writing._write
def slow(*args):
    print("writing", flush=True)
    time.sleep(0.05)
    if sys.argv[2] == "fails":
        raise OSError(28, "No space left on device")
    return real(*args)
writing._write = slow
run.save(sys.argv[1], 2, asynchronous=True)
if sys.argv[2] == "raises":
    raise RuntimeError("in training")
"""


def process(folder: Path, how: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SCRIPT, str(folder), how]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("how", "step", "words"), [("ends", 2, ""), ("raises", 2, "in training"), ("fails", 1, "No")])
def test_a_process_that_ends_writes_first(how: str, step: int, words: str, tmp_path: Path) -> None:
    with process(tmp_path, how) as ended:
        _, errors = ended.communicate(timeout=100)
    assert words in errors
    assert Run("transformer", "dense", seed=3).load(tmp_path).step == step
    assert not list(tmp_path.glob(".step*"))


def test_a_process_that_is_killed_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    with process(tmp_path, "killed") as killed:
        assert killed.stdout is not None and killed.stdout.readline() == "writing\n"
        killed.kill()
    assert [path.name for path in tmp_path.glob("*step*")] != ["step-00000001"]
    run = Run("transformer", "dense", seed=3)
    assert run.load(tmp_path).step == 1
    run.save(tmp_path, 2, asynchronous=True).wait()
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000001", "step-00000002", ".lock"}


class Silent(background.Meeting):
    """A meeting whose store does not answer."""

    def __init__(self) -> None:
        super().__init__(None, 0.3, "sdp.save_checkpoint()", lambda: None, lambda: None)
        self.forever = threading.Event()

    def end(self, error: str) -> str:
        self._ask(self.forever.wait)
        return ""


def test_that_a_store_which_does_not_answer_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_LOOK_EVERY", 0.1)
    monkeypatch.setattr(background, "_last", None)
    meeting = Silent()
    saving = background.begin(background.Saving(tmp_path, "sdp.save_checkpoint()", lambda advance: None, meeting))
    for wait in (saving.wait, background.settle):
        with pytest.raises(DistributedError, match="has not answered worker 0"):
            wait()
    background.settle(raises=False)
    assert not saving.done()
    meeting.forever.set()
    deadline = time.monotonic() + 60  # the thread has the lowest priority: on a busy machine it may be late
    while not saving.done() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert saving.done() and saving.wait() == tmp_path
