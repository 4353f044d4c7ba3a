"""``train --checkpoint``: a run that is stopped by a scheduler goes on as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.scripts import run_command

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, "-m", "sdp_compile.cli.main", "train", "--workers", "2", "--steps", "6"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRAIN, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=580
    )


def result_of(folder: Path) -> tuple[list[float], float, dict[str, torch.Tensor], dict[str, Any]]:
    report = json.loads((folder / "report.json").read_text())
    return report["train_loss"], report["validation_loss"]["before"], load_file(folder / "model.safetensors"), report


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "how"), [(signal.SIGTERM, []), (signal.SIGUSR1, ["--asynchronous"])])
def test_a_run_that_is_given_notice_saves_stops_and_goes_on(
    number: signal.Signals, how: list[str], tmp_path: Path
) -> None:
    whole = run_command("train", "--steps", "6", "--output", str(tmp_path / "whole"), workers=2)
    assert whole.returncode == 0, whole.stderr
    saved = tmp_path / "saved"
    options = ["--output", str(tmp_path / "parts"), "--checkpoint", str(saved), "--resume", "auto", "--keep", "2"]
    options += how
    with subprocess.Popen(
        [*TRAIN, *options, "--every", "1"], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_for(saved / "step-00000001", process)
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 75, errors
    assert "Stopped; saved a checkpoint in" in errors and "Traceback" not in errors
    kept = sorted(path.name for path in saved.glob("step-*"))
    assert 1 <= len(kept) <= 2 and kept[-1] < "step-00000006"
    assert not (tmp_path / "parts" / "report.json").exists()
    rest = run(*options, "--every", "100")
    assert rest.returncode == 0, rest.stderr
    expected, found = result_of(tmp_path / "whole"), result_of(tmp_path / "parts")
    assert found[0] == expected[0] and found[1] == expected[1]
    assert all(torch.equal(value, expected[2][key]) for key, value in found[2].items())
    assert found[3]["run"]["resumed_from_step"] == int(kept[-1].removeprefix("step-"))

    changed = ["--policy", "block", "--resume", str(saved / kept[-1])]
    other = run_command("train", "--steps", "6", "--output", str(tmp_path / "other"), *changed, workers=3)
    assert other.returncode == 0, other.stderr
    losses = result_of(tmp_path / "other")[0]
    assert len(losses) == 6 and losses[: int(kept[-1][5:])] == expected[0][: int(kept[-1][5:])]


def test_what_cannot_be_resumed_is_an_error(tmp_path: Path) -> None:
    for arguments, words in (
        (["--resume", "auto"], "Add --checkpoint DIR"),
        (["--resume", tmp_path / "nothing"], "does not exist"),
        (["--every", "0"], "--every"),
        (["--asynchronous"], "Add --checkpoint DIR"),
        (["--reset-lost-optimizer-state"], "Add --resume auto|PATH"),
    ):
        result = run("--output", tmp_path, *arguments)
        assert result.returncode == 2 and words in result.stderr, result.stderr
