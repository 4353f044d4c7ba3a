"""The main job, end to end with real processes, short."""

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from sdp_compile.models.gpt import GPT, GPTConfig
from sdp_compile.train.corpus import load_corpus
from tests.cli.interrupting import commands, interrupted
from tests.scripts import run_command

ROOT = Path(__file__).parents[2]
TRAIN = [sys.executable, "-m", "sdp_compile.cli.main", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=580)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """A default run with the baseline, of 7 steps: what it printed, where it wrote, what it reported."""
    folder = tmp_path_factory.mktemp("train")
    result = run(*TRAIN, "--steps", "7", "--baseline", "--output", str(folder), "--json", str(folder / "run.json"))
    assert result.returncode == 0, result.stderr
    assert "training" not in result.stderr, "no progress where there is no terminal"
    assert "Traceback" not in result.stderr
    return result.stdout, folder, json.loads((folder / "run.json").read_text())


def test_report_has_the_promised_form(trained: tuple[str, Path, dict[str, Any]]) -> None:
    report = trained[2]
    assert {"validation_loss", "train_loss", "baseline", "workers", "tokens_per_second", "policy", "plan_digest"} <= {
        *report
    }
    assert len(report["train_loss"]) == len(report["baseline"]["train_loss"]) == 7
    assert [worker["rank"] for worker in report["workers"]] == [0, 1, 2, 3]
    assert report["policy"]["coverage"] == 0.5 and report["run"]["schedule"] == "dense-tail"
    assert report["rate_by_owners"] == 0.5 and report["learning_rate"]["shape"] == "stable"
    assert [phase["policy"]["coverage"] for phase in report["phases"]] == [0.5, 1.0]
    assert report["tokens_per_second"] > 0
    assert report["plan_digest"]


def test_training_helps_the_assembled_model(trained: tuple[str, Path, dict[str, Any]]) -> None:
    report = trained[2]
    loss, dense = report["validation_loss"], report["baseline"]["validation_loss"]
    assert loss["before"] == pytest.approx(dense["before"], abs=1e-5)  # the same initial model
    assert loss["after"] < loss["before"] - 1
    assert dense["after"] < dense["before"] - 1
    assert report["train_loss"][-1] < report["train_loss"][0] - 1


def test_the_baselines_have_as_much_time(trained: tuple[str, Path, dict[str, Any]]) -> None:
    """The small dense model has half of the heads and of the hidden units; both have as many seconds, about."""
    printed, _, report = trained
    same = report["same_time"]
    assert same["seconds"] == report["run"]["seconds"]
    small = GPT(GPTConfig(heads=4, hidden=512, head_width=32))
    assert same["small"]["parameters"] == sum(parameter.numel() for parameter in small.parameters())
    assert same["dense"]["state_bytes"] == report["baseline"]["state_bytes"] > 1.8 * same["small"]["state_bytes"]
    assert 1 <= same["dense"]["steps"] < same["small"]["steps"]
    for name in ("dense", "small"):
        assert same[name]["validation_loss"]["after"] < report["validation_loss"]["before"] - 1
        assert f"{same[name]['validation_loss']['after']:.3f}" in printed
        assert f"{name}, equal time" in printed


def test_a_worker_holds_less_than_half_in_every_phase(trained: tuple[str, Path, dict[str, Any]]) -> None:
    """Bytes of the dense state are counted by hand: AdamW in float32, and a step counter per parameter.

    At the end a worker has all parameters, and a quarter of their gradients and moments.
    """
    parameters = list(GPT(GPTConfig()).parameters())
    dense = sum(parameter.numel() for parameter in parameters)
    for worker in trained[2]["workers"]:
        assert worker["dense_state_bytes"] == 16 * dense + 4 * len(parameters)
        assert worker["parameters"] == dense
        assert worker["state_bytes"] == pytest.approx((1 + 3 / 4) / 4 * worker["dense_state_bytes"], rel=0.01)
    first, last = trained[2]["phases"]
    assert first["state_bytes"] < last["state_bytes"] == max(one["state_bytes"] for one in trained[2]["workers"])


def test_a_policy_has_a_single_phase(tmp_path: Path) -> None:
    for options, is_sharded in ((["--coverage", "0.5"], False), (["--policy", "neuron", "--sharded"], True)):
        result = run_command("train", *options, "--steps", "2", "--output", str(tmp_path), workers=4)
        assert result.returncode == 0, result.stderr
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["run"]["schedule"] is None and len(report["phases"]) == 1 and not report["rate_by_owners"]
        assert report["run"]["sharded"] is is_sharded
        for worker in report["workers"]:
            assert worker["parameters"] < 0.54 * worker["dense_parameters"]
            assert worker["state_bytes"] <= (0.36 if is_sharded else 0.56) * worker["dense_state_bytes"]


def test_the_written_model_is_the_one_that_was_validated(trained: tuple[str, Path, dict[str, Any]]) -> None:
    _, folder, report = trained
    model = GPT(GPTConfig())
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    text = torch.frombuffer(bytearray(load_corpus().validation), dtype=torch.uint8).long()
    starts = torch.linspace(0, len(text) - 129, 128).long()
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(text[None, start : start + 128])[0], text[start + 1 : start + 129])
            for start in starts
        ]
    assert torch.stack(losses).mean().item() == pytest.approx(report["validation_loss"]["after"], abs=1e-4)


def test_tables_show_the_report(trained: tuple[str, Path, dict[str, Any]]) -> None:
    printed, _, report = trained
    assert all(f"{worker['parameters']:,}" in printed for worker in report["workers"])
    for result in (report, report["baseline"]):
        assert f"{result['validation_loss']['after']:.3f}" in printed
        assert f"{result['tokens_per_second']:,.0f}" in printed
    *tables, wrote = printed.splitlines()
    assert max(map(len, tables)) <= 80
    assert wrote.startswith("Wrote ") and "model.safetensors" in wrote  # paths are never broken over lines


def test_under_torchrun_it_joins(tmp_path: Path) -> None:
    options = ["--steps", "2", "--level", "block", "--output", str(tmp_path)]
    result = run(*TORCHRUN, "2", "-m", "sdp_compile.cli.main", "train", *options)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report["workers"]) == 2
    assert report["baseline"] is report["same_time"] is None
    assert (tmp_path / "model.safetensors").exists()


def test_a_terminal_sees_progress(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*TRAIN, "--workers", "1", "--steps", "3", "--output", str(tmp_path)]
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0
    assert b"training subnetworks" in seen
    assert b"3/3" in seen


@pytest.mark.parametrize(
    ("options", "file", "words"),
    [
        (["--policy", "newron"], None, ["newron", "neuron", "block", "auto"]),
        (["--policy", "{file}"], "level = ", ["policy.toml"]),
        (["--policy", "{file}"], 'policy = "neuron"\nfoo = 1', ["foo"]),
        (["--policy", "{file}", "--workers", "2"], 'policy = "neuron"\nreplicas = 3', ["replicas", "3", "2"]),
    ],
)
def test_a_policy_that_cannot_be_is_one_clean_message(
    options: list[str], file: str | None, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(file or "")
    options = [option.format(file=path) for option in options]
    result = run(*TRAIN, *options, "--steps", "1", "--output", str(tmp_path / "out"))
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("Error:") == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr


def test_all_reductions_agree_on_equal_batches(tmp_path: Path) -> None:
    losses = []
    for reduction in ("mean", "sum", "tokens"):
        folder = tmp_path / reduction
        options = ["--reduction", reduction, "--steps", "4", "--output", str(folder)]
        result = run_command("train", *options, workers=2)
        assert result.returncode == 0, result.stderr
        report = json.loads((folder / "report.json").read_text())
        assert report["run"]["reduction"] == reduction
        losses.append(report["train_loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)


def test_ctrl_c_ends_all_workers(tmp_path: Path) -> None:
    started = float("inf")

    def is_training(process: int) -> bool:
        nonlocal started
        if started == float("inf") and sum(b"train.worker" in one for one in commands(process).values()) == 2:
            started = time.monotonic()
        return time.monotonic() > started + 10  # into the middle of it

    interrupted([*TRAIN, "--workers", "2", "--steps", "100000", "--output", str(tmp_path)], is_training, {}, limit=20)
