"""``sdp-compile bench`` from the outside: one small run, its table, JSON and picture; refusals; Ctrl-C."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdp_compile.bench.overlap import overlap
from tests.cli.interrupting import interrupted

pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parents[2]
BENCH = [sys.executable, "-c", "from sdp_compile.cli.main import main; main()", "bench"]
MODEL = "tests/bench/models.py:residual"
SMALL = ["--workers", "2", "--rounds", "2", "--steps", "1", "--batch", "6", "--no-compile"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run([*BENCH, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment)


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
