"""``sdp-compile bench`` from the outside: one small run, its table, JSON and picture; refusals; Ctrl-C."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdp_compile.bench.overlap import overlap
from sdp_compile.capture import capture
from sdp_compile.planning.phases import planned_parts
from sdp_compile.policies import resolve_schedule
from sdp_compile.structure.analysis import analyse
from tests.bench.models import residual
from tests.cli.interrupting import interrupted
from tests.scripts import Result, run_command

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parents[2]
BENCH = [sys.executable, "-c", "from sdp_compile.cli.main import main; main()", "bench"]
MODEL = "tests/bench/models.py:residual"
SMALL = ["--workers", "2", "--rounds", "2", "--steps", "1", "--batch", "6", "--no-compile"]


def bench(*arguments: str) -> Result:
    return run_command("bench", *arguments)


def test_one_run_measures_all_variants_side_by_side(tmp_path: Path) -> None:
    found, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    variants = "ddp,ddp-checkpoint,fsdp2,sdp-neuron,sdp-block"
    files = ["--json", str(found), "--plot", str(picture), "--profile", str(tmp_path / "traces")]
    result = bench(MODEL, *SMALL, "--variants", variants, *files)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(found.read_text())
    by_name = {variant["name"]: variant for variant in report["variants"]}
    assert sorted(by_name) == sorted(variants.split(","))
    assert report["samples_per_worker"] == 6
    ddp = by_name["ddp"]
    for name, variant in by_name.items():
        assert variant["status"] == "ok"
        assert name in result.stdout
        assert len(variant["step_seconds"]["turns"]) == 2
        assert variant["ratio"]["ddp"]["median"] > 0
        assert variant["traffic"]["as_predicted"] == [True, True]
        profile = variant["profile"]
        assert Path(profile["trace"]) == tmp_path / "traces" / f"{name}.json"
        assert (
            overlap(json.loads(Path(profile["trace"]).read_text())["traceEvents"]).to_dict().items() <= profile.items()
        )
        for figures in (profile, *profile["workers"]):
            assert 0 < figures["communication_seconds"] <= figures["step_seconds"]
            assert 0 <= figures["exposed_seconds"] <= figures["communication_seconds"]
    assert ddp["ratio"]["ddp"]["median"] == 1.0
    # The peers train the same model on the same data: only then are their times comparable.
    for peer in ("ddp-checkpoint", "fsdp2"):
        for losses, expected in zip(by_name[peer]["losses"], ddp["losses"], strict=True):
            assert losses == pytest.approx(expected, rel=1e-4)
    assert by_name["sdp-neuron"]["memory"]["most"]["state"] < ddp["memory"]["most"]["state"]
    assert "<svg" in picture.read_text()
    assert "exposed" in result.stdout


def test_the_phases_of_a_schedule(tmp_path: Path) -> None:
    found, file = tmp_path / "bench.json", tmp_path / "own.toml"
    phases = [
        'share = 0.6\nresample_every = 20\npolicy = "neuron"\ncoverage = 0.5\ndesign = "rolling"',
        'share = 0.4\npolicy = "block"\ncoverage = 0.5\nmasking = "backward"',
    ]
    file.write_text("".join(f"[[phase]]\n{phase}\n" for phase in phases))
    result = bench(MODEL, *SMALL, "--variants", "ddp", "--schedule", str(file), "--json", str(found))
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(found.read_text())
    assert [variant["name"] for variant in report["variants"]] == ["ddp"]
    schedule, sharded = report["schedules"]
    assert (schedule["name"], sharded["name"]) == ("schedule", "schedule-sharded") and len(schedule["runs"]) == 2
    assert all(one["ratio"]["ddp"]["median"] > 0 for one in schedule["parts"])
    for whole, shared in zip(schedule["parts"], sharded["parts"], strict=True):
        assert shared["state"] <= whole["state"]  # two workers own what one of two holds alone
    assert schedule["compile_seconds"]["low"] > 0 and schedule["ratio"]["ddp"]["median"] > 0
    first, drawn, last = schedule["parts"]
    assert (first["kind"], drawn["kind"], last["kind"]) == ("phase", "owners", "phase")
    assert first["change"] is None
    # What moved is what the plans say, and what is held what they count (parameters, gradients, AdamW, buffers).
    parts = planned_parts(analyse(capture(*residual())), resolve_schedule(str(file)), 2)
    for part, one in zip(schedule["parts"], parts, strict=True):
        buffers = max(one.plan.memory(rank).buffers for rank in range(2))
        most = max(one.plan.memory(rank).total for rank in range(2))
        assert most <= part["state"] <= most + buffers + 64
        if one.moves is not None:
            assert (
                part["change"]["total"] == one.moves.total and part["change"]["sent"] == one.moves.nbytes.sum(1).max()
            )
    for run in schedule["runs"]:
        mean = 0.6 * run["parts"][0]["step"] + 0.4 * run["parts"][2]["step"]
        assert run["seconds"] == pytest.approx(mean, rel=0.5)  # the slowest worker of each figure
        assert all(0 < one["change"]["seconds"] for one in run["parts"][1:])
    shown = " ".join(result.stdout.split())
    assert "owners drawn again, every 20 steps" in shown and "First compilation" in shown


def test_a_variant_that_fails_keeps_its_row_and_the_others_go_on(tmp_path: Path) -> None:
    """Without two blocks alike there is nothing to checkpoint."""
    found = tmp_path / "bench.json"
    variants = "ddp,ddp-checkpoint"
    result = bench("torch.nn:Identity", "--input", "4x3", *SMALL[:-1], "--variants", variants, "--json", str(found))
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    rows = json.loads(found.read_text())["variants"]
    assert [row["status"] for row in rows] == ["failed"] * len(rows)
    assert "ddp-checkpoint" in result.stdout and "Without figures" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--variants", "zero3"], ["zero3", "fsdp2"]),
        (["--replicas", "9"], ["--replicas 9"]),
        (["--plot", "picture.gif"], [".png", ".svg"]),
        (["--profile", "no/such/folder"], ["--profile no/such/folder"]),
        (["--schedule", "growin"], ["Did you mean 'growing'"]),
        (["--schedule", "growing", "--profile", "."], ["--profile and --schedule exclude"]),
        (["--schedule", "growing", "--one-of", "4"], ["--schedule and --one-of exclude"]),
        (["--delay", "10gbe"], ["--delay belongs to --one-of"]),
        (["--one-of", "4", "--delay", "10gb"], ["--delay 10gb", "10gbe"]),
        (["--one-of", "4", "--delay", "1", "--links", "10gbe"], ["--delay and --links exclude"]),
        (["no-model"], ["does not name a model"]),
    ],
)
def test_wrong_words_are_refused_at_once(arguments: list[str], words: list[str]) -> None:
    code = (
        "import sys\nfrom sdp_compile.cli.main import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules, 'torch was imported'"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "bench", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 2, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr


def test_ctrl_c_ends_all_workers(tmp_path: Path) -> None:
    interrupted(
        [*BENCH, MODEL, "--workers", "2", "--rounds", "100000", "--no-compile", "--variants", "ddp"],
        lambda _: len(list(tmp_path.glob("sdp-compile-bench-*/*.log"))) == 2,
        {"TMPDIR": str(tmp_path)},
    )
