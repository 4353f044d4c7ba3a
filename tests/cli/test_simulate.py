"""``sdp-compile simulate`` from the outside: a prediction, refusals, and one validation against measured workers."""

import json
from pathlib import Path

import pytest

from tests.scripts import Result, run_command

pytestmark = pytest.mark.timeout(240)

MODEL = "tests/bench/models.py:residual"


def simulate(*arguments: str) -> Result:
    return run_command("simulate", *arguments)


def test_many_workers_are_predicted_here(tmp_path: Path) -> None:
    found = tmp_path / "steps.json"
    variants = "ddp,fsdp2,sdp-neuron,sdp-block"
    result = simulate(
        MODEL, "--workers", "64", "--nodes", "8", "--variants", variants, "--sensitivity", "--json", str(found)
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(found.read_text())
    ratios = report["sensitivity"]
    assert len(ratios) == 2 * 6 * 4  # variants of SDP, links, batches
    assert all(0 < ratio["of_ddp"] < 1.05 for ratio in ratios)
    assert report["assumptions"][0] in " ".join(result.stdout.split())
    assert report["cluster"]["workers_per_node"] == 8
    steps = {variant["name"]: variant["predicted"] for variant in report["variants"]}
    assert sorted(steps) == sorted(variants.split(","))
    assert steps["sdp-neuron"]["sent"] < steps["ddp"]["sent"] < steps["fsdp2"]["sent"]
    assert all(name in result.stdout for name in steps)


def test_machines_by_name_and_single_figures_of_them(tmp_path: Path) -> None:
    found = tmp_path / "steps.json"
    arguments = ["--workers", "16", "--nodes", "2", "--variants", "ddp,sdp-neuron", "--json", str(found)]
    result = simulate(MODEL, "--hardware", "h100-10gbe", "--inter-latency", "70", "--memory", "1e-6", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(found.read_text())
    cluster = report["cluster"]
    assert cluster["flops"] == 200e12
    assert cluster["inter"]["latency"] == pytest.approx(70e-6)  # as given, and not as the name says
    assert 1 / cluster["inter"]["seconds_per_byte"] == pytest.approx(1.25e9)
    assert report["memory"] == pytest.approx(1e3)
    assert " ".join(result.stdout.split()).count("do not fit into the") == 2


def test_the_phases_of_a_schedule(tmp_path: Path) -> None:
    found = tmp_path / "steps.json"
    arguments = ["--workers", "16", "--nodes", "2", "--variants", "sdp-neuron", "--memory", "1e-6"]
    result = simulate(MODEL, *arguments, "--schedule", "rolling", "--json", str(found))
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(found.read_text())
    schedule = report["schedule"]
    assert [(part["phase"], part["kind"]) for part in schedule["parts"]] == [(1, "phase"), (1, "owners"), (2, "phase")]
    first, drawn, last = schedule["parts"]
    assert first["change"] is None and first["predicted"]["state"] < last["predicted"]["state"]
    assert first["predicted"]["sent"] < last["predicted"]["sent"] < schedule["ddp"]["sent"]
    assert 0 < drawn["change"]["sent"] <= drawn["change"]["total"]
    mean = 0.7 * first["predicted"]["seconds"] + 0.3 * last["predicted"]["seconds"]
    recurring = 0.7 / 100 * drawn["change"]["seconds"]
    for peer in ("ddp", "fsdp2"):  # also without rows of their own
        assert schedule[f"of_{peer}"] == pytest.approx((mean + recurring) / schedule[peer]["seconds"])
    shown = " ".join(result.stdout.split())
    assert "owners drawn again, every 100 steps" in shown and "7 in 1,000 steps" in shown and "once" in shown
    assert "phase 2 (neuron, backward, coverage 0.5): " in shown and "Mean step of rolling" in shown


def test_a_preset_is_named_by_what_was_published(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    found = tmp_path / "steps.json"
    arguments = ["--set", "num_hidden_layers=1", "--input", "input_ids=1x64:int64", "--json", str(found)]
    result = simulate("llama-1b", "--variants", "ddp", *arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(found.read_text())
    assert report["model"] == "llama-1b"
    assert report["configuration"]["source"] == "meta-llama/Llama-3.2-1B"
    assert report["configuration"]["changes"] == ["num_hidden_layers=1"]
    assert report["configuration"]["inputs"] == [{"name": "input_ids", "shape": [1, 64]}]
    of_layer = 2048 * (2 * 2048 + 2 * 512) + 3 * 2048 * 8192 + 2 * 2048
    assert report["configuration"]["parameters"] == 128_256 * 2048 + of_layer + 2048


def test_a_named_model_is_simulated_as_published_without_weights(tmp_path: Path) -> None:
    """GPT-2's gradients are 124,439,808 float32 numbers, of which a ring all-reduce sends 2 (N - 1) / N."""
    pytest.importorskip("transformers")
    found = tmp_path / "steps.json"
    result = simulate(
        "transformers:gpt2", "--workers", "64", "--nodes", "8", "--variants", "ddp,sdp-neuron", "--json", str(found)
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(found.read_text())
    assert report["configuration"]["origin"] == "published"
    assert report["configuration"]["source"] == "openai-community/gpt2"
    assert report["configuration"]["parameters"] == 124_439_808
    assert report["configuration"]["inputs"] == [{"name": "input_ids", "shape": [2, 1024]}]
    assert "transformers:gpt2, published configuration, 124,439,808 parameters" in " ".join(result.stdout.split())
    ddp = report["variants"][0]["predicted"]
    assert ddp["sent"] == pytest.approx(4 * 124_439_808 * 2 * 63 / 64, rel=1e-3)


def test_predicted_and_measured_stand_side_by_side(tmp_path: Path) -> None:
    found = tmp_path / "steps.json"
    result = simulate(
        MODEL,
        "--validate",
        "--workers",
        "2",
        "--rounds",
        "1",
        "--steps",
        "1",
        "--variants",
        "ddp,sdp-neuron",
        "--json",
        str(found),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = {row["name"]: row for row in json.loads(found.read_text())["variants"]}
    assert "error" in result.stdout
    sdp = rows["sdp-neuron"]
    # Predictions leave out padding, at most 7 elements for each owner of a bucket.
    padding = max(sdp["measured"]["traffic"]["sent"]) - sdp["predicted"]["sent"]
    assert 0 <= padding <= 0.05 * sdp["predicted"]["sent"]
    assert sdp["measured"]["step_seconds"]["median"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "6", "--nodes", "4"], ["--workers 6", "--nodes 4"]),
        (["--validate", "--nodes", "2", "--workers", "4"], ["--validate", "--nodes"]),
        (["--variants", "zero3"], ["zero3"]),
        (["--schedule", "growin"], ["Did you mean 'growing'"]),
        (["--schedule", "absent.toml"], ["absent.toml", "no such file"]),
        (["--tflops", "0"], ["flops must be positive"]),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], words: list[str]) -> None:
    result = simulate(*arguments)
    assert result.returncode == 2, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert "Traceback" not in result.stderr
