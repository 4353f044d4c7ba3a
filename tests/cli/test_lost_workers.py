"""Workers that are killed: training goes on from the newest checkpoint, without a human and without a trace."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import sdp_compile.cli.train as command
from sdp_compile.checkpoint.folder import whole_checkpoints
from sdp_compile.checkpoint.reading import Checkpoint
from sdp_compile.command_words import DEFAULT_RATE_BY_OWNERS, DEFAULT_SCHEDULE
from sdp_compile.errors import SDPError
from sdp_compile.train.settings import TrainSettings
from tests.cli.dying import ATTEMPTS, ONCE

ROOT = Path(__file__).parents[2]
BATCH = TrainSettings.batch
TRAIN = ["-m", "tests.cli.dying", "train", "--steps", "6", "--every", "2", "--resume", "auto"]


def environment(*deaths: list[Any], **variables: str) -> dict[str, str]:
    return {**os.environ, "DYING": json.dumps(deaths), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def torchrun(*options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", *options]


def folders(folder: Path) -> list[str]:
    return ["--output", str(folder), "--checkpoint", str(folder / "saved")]


def launched(folder: Path, monkeypatch: pytest.MonkeyPatch, *deaths: list[Any], **settings: Any) -> None:
    """``sdp-compile train`` in this process, with workers that die."""
    starts = []

    def worker_command(module: str, text: str) -> list[str]:
        monkeypatch.setenv(ATTEMPTS, str(len(starts)))
        starts.append(text)
        return [sys.executable, "-m", "tests.cli.dying", "worker", text]

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(command, "worker_command", worker_command)
    for name, value in environment(*deaths).items():
        monkeypatch.setenv(name, value)
    options = {"steps": 6, "every": 2, "resume": "auto", "output": str(folder), "checkpoint": str(folder / "saved")}
    default = {"schedule": DEFAULT_SCHEDULE, "rate_by_owners": DEFAULT_RATE_BY_OWNERS, "sharded": True}
    command.train(TrainSettings(**{**default, **options, **settings}))


def result_of(folder: Path) -> tuple[list[float], dict[str, torch.Tensor], dict[str, Any]]:
    report = json.loads((folder / "report.json").read_text())
    return report["train_loss"], load_file(folder / "model.safetensors"), report


def same(one: Path, other: Path) -> None:
    (losses, model, _), (expected_losses, expected, _) = result_of(one), result_of(other)
    assert losses == expected_losses
    assert all(torch.equal(value, expected[key]) for key, value in model.items()) and set(model) == set(expected)


def no_leftovers(folder: Path) -> None:
    assert [path.name for path in whole_checkpoints(folder)] == [f"step-0000000{step}" for step in (2, 4, 6)]
    assert not [path for path in folder.iterdir() if path.name.startswith(".step")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of 4 workers."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        launched(folder, patch, checkpoint=None, resume=None)
    return folder


def test_torchrun_restarts_from_the_newest_checkpoint(whole: Path, tmp_path: Path) -> None:
    """Killed in backward, and while a checkpoint is written; bit by bit the uninterrupted run."""
    deaths = [[0, 2, "backward", 3], [1, 3, "writing", 2]]
    ran = subprocess.run(
        [*torchrun("--nproc-per-node", "4", "--max-restarts", "2"), *TRAIN, *folders(tmp_path)],
        env=environment(*deaths),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("Goes on after step 2") == 2, ran.stderr
    same(tmp_path, whole)
    no_leftovers(tmp_path / "saved")


def test_the_launcher_restarts_with_as_many_and_with_fewer(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    launched(tmp_path / "four", monkeypatch, [0, 1, "collective", 2], max_restarts=1)
    said = capfd.readouterr().err
    assert "Worker 1 was ended by SIGKILL" in said and "Restart 1 of 1, with 4 workers." in said
    assert "Goes on after step" in said
    same(tmp_path / "four", whole)
    no_leftovers(tmp_path / "four" / "saved")

    losing = {"max_restarts": 2, "min_workers": 3, "local_checkpoint": True}
    launched(tmp_path / "three", monkeypatch, [0, 0, "forward", 3], **losing)
    said = capfd.readouterr().err
    assert "Worker 0 was ended by SIGKILL" in said and "Restart 1 of 2, with 3 workers." in said
    losses, _, report = result_of(tmp_path / "three")
    assert losses[:2] == result_of(whole)[0][:2] and len(losses) == 6
    assert len(report["workers"]) == 3 and report["run"]["resumed_from_step"] == 2
    # No sample is lost or repeated: those of 2 steps of 4 workers, then of 4 steps of 3.
    assert Checkpoint(tmp_path / "three" / "saved").manifest.samples == BATCH * (2 * 4 + 4 * 3)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_three_agents_go_on_when_the_first_is_gone(whole: Path, tmp_path: Path) -> None:
    """Killed with its worker in forward; the rendezvous is in a process of its own."""
    port = free_port()
    serve = (
        f"import time\nfrom torch.distributed import TCPStore\nstore = TCPStore('127.0.0.1', {port}, is_master=True,"
    )
    serve += " wait_for_workers=False)\nprint('ready', flush=True)\ntime.sleep(1000)"
    store = subprocess.Popen([sys.executable, "-c", serve], stdout=subprocess.PIPE)
    options = ["--nnodes", "3:4", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-backend", "c10d"]
    options += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    options += ["--rdzv-conf", "is_host=0,join_timeout=300,last_call_timeout=15"]
    agents = []
    try:
        assert store.stdout is not None and store.stdout.readline() == b"ready\n"
        for number in range(4):
            with (tmp_path / f"{number}.log").open("w") as log:
                once = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", ONCE: str(tmp_path / "died")}
                variables = environment([0, 0, "forward", 4], **once)
                train = [*TRAIN, *folders(tmp_path), "--min-workers", "3"]
                agents.append(
                    subprocess.Popen([*torchrun(*options), *train], env=variables, cwd=ROOT, stdout=log, stderr=log)
                )
        ends = time.monotonic() + 500
        while any(agent.poll() is None for agent in agents) and time.monotonic() < ends:
            time.sleep(0.2)
        logs = "\n".join(path.read_text() for path in sorted(tmp_path.glob("*.log")))
        codes = [agent.poll() for agent in agents]
        assert sorted(str(code) for code in codes) == ["-9", "0", "0", "0"], logs
    finally:
        for process in (*agents, store):
            process.kill()
            process.wait()
    losses, _, report = result_of(tmp_path)
    assert losses[:2] == result_of(whole)[0][:2] and len(losses) == 6
    assert len(report["workers"]) == 3 and report["run"]["resumed_from_step"] == 2
    assert Checkpoint(tmp_path / "saved").manifest.samples == BATCH * (2 * 4 + 4 * 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_restarts": 1}, "Add --checkpoint DIR"),
        ({"max_restarts": 1, "checkpoint": "here", "resume": "there"}, "Pass --resume auto"),
        ({"local_checkpoint": True}, "Add --checkpoint DIR"),
        ({"min_workers": 5}, "Only 4 workers are left, and --min-workers is 5"),
        ({"min_workers": 3, "node_size": 2}, "--min-workers 3: --node-size 2 does not divide the 3 workers"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SDPError, match=words):
        TrainSettings(**settings)
