"""``sdp-compile plan``: the report, the plan as JSON, one worker's part, clean refusals without torch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdp_compile import Plan
from sdp_compile.cli.main import app
from sdp_compile.cli.plan_report import runs
from tests.cli.test_main import command

pytestmark = pytest.mark.timeout(240)

MODEL = "tests/bench/models.py:residual"


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "120"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_report_and_the_plan(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    code, out, error = run(MODEL, "--workers", "6", "--policy", "neuron", "--coverage", "0.5", "--json", str(target))
    assert code == 0, error
    plan = Plan.from_json(target.read_text())
    assert plan.workers == 6 and plan.policy["coverage"] == 0.5
    assert f"{MODEL}, " in out and "parameters" in out
    assert "What is cut" in out and "What each worker pays" in out
    assert "What worker" not in out


def test_one_workers_part() -> None:
    code, out, error = run(MODEL, "--workers", "4", "--policy", "neuron", "--rank", "2")
    assert code == 0, error
    assert "What worker 2 owns" in out and "Worker 2: " in out and "per step" in out


def test_the_phases_of_a_schedule(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    code, out, error = run(MODEL, "--workers", "4", "--schedule", "rolling", "--json", str(target))
    assert code == 0, error
    plan = Plan.from_json(target.read_text())
    assert plan.policy["design"] == "rolling"
    rows = [line.split() for line in out[out.index("Phases") :].splitlines()]
    first, second = (next(row for row in rows if row[:1] == [share]) for share in ("70%", "30%"))
    most = max(plan.memory(rank).total for rank in range(4)) / plan.memory().total
    assert f"{most:.0%}" in first and "100%" in second
    code, _, error = run(MODEL, "--schedule", "growin")
    assert code == 2 and "Did you mean 'growing'" in error
    code, _, error = run(MODEL, "--schedule", "growing", "--coverage", "0.5")
    assert code == 2 and "Leave out --policy, --coverage and --masking" in " ".join(error.split())


def test_nodes() -> None:
    code, out, error = run(MODEL, "--workers", "8", "--policy", "neuron", "--node-size", "2", "--json", "-")
    assert code == 0, error
    assert Plan.from_json(out).node_size == 2 and "Plan · 8 workers · 4 nodes" in error
    code, _, error = run(MODEL, "--workers", "6", "--node-size", "4")
    assert code == 2 and "--node-size 4 does not divide the 6 workers" in error and "multiple of 4" in error


def test_json_on_standard_output_stands_alone() -> None:
    code, out, error = run(MODEL, "--json", "-")
    assert code == 0 and Plan.from_json(out).workers == 4
    assert "What is cut" in error


def test_a_named_model_is_planned_as_published() -> None:
    pytest.importorskip("torchvision")
    code, out, error = run("torchvision:resnet18")
    assert code == 0, error
    assert "torchvision:resnet18, published configuration, 11,689,512 parameters" in out
    assert "input 2x3x224x224" in out
    code, out, _ = run("torchvision:resnet18", "--small")
    assert code == 0 and "small configuration" in out and "input 2x3x64x64" in out


def test_real_weights_are_announced_on_standard_error() -> None:
    pytest.importorskip("torchvision")
    code, out, error = run("torchvision:regnet_y_400mf", "--json", "-")
    assert code == 0 and json.loads(out)
    assert "regnet_y_400mf cannot be built on the meta device" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Missing argument"]),
        (["resnet18"], ["resnet18", "torchvision:NAME", "config.json"]),
        (["a:b", "--rank", "4"], ["--rank 4", "0 to 3"]),
        (["a:b", "--workers", "0"], ["--workers"]),
        (["a:b", "--full"], ["--full", "factory"]),
        (["a:b", "--policy", "newron"], ["newron", "neuron"]),
        (["a:b", "--coverage", "2"], ["coverage=2"]),
        (["a:b", "--json", "/no/such/folder/x.json"], ["--json", "folder"]),
        (["./no-such-model/"], ["config.json", "there is no file"]),
    ],
)
def test_bad_words_are_refused_without_torch(arguments: list[str], words: list[str]) -> None:
    result = command("plan", *arguments)
    assert result.returncode == 2, result.stderr
    assert all(word in " ".join(result.stderr.split()) for word in words), result.stderr
    assert "torch was imported" not in result.stderr and "Traceback" not in result.stderr


def test_help_shows_examples_without_torch() -> None:
    result = command("plan", "--help")
    assert result.returncode == 0 and "torch was imported" not in result.stderr


def test_runs_of_units() -> None:
    assert runs([]) == ""
    assert runs([3]) == "3"
    assert runs([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert runs(range(0, 20, 2)) == "0, 2, 4, 6, ..."
