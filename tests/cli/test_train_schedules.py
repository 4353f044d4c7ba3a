"""``train --schedule``: phases in the report, and a run that goes on in the phase in which it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.scripts import Result, run_command

pytestmark = pytest.mark.timeout(400)


SCHEDULE = """
rate_by_owners = 1.0

[learning_rate]
shape = "stable"
warm_up = 0.3
decay = 0.4

[[phase]]
share = 0.5
resample_every = 2
policy = "neuron"
coverage = 0.5
design = "rolling"

[[phase]]
share = 0.25
policy = "block"
coverage = 0.5

[[phase]]
share = 0.25
policy = "neuron"
coverage = 0.5
masking = "backward"
"""


def train(*arguments: str | Path) -> Result:
    return run_command("train", *map(str, arguments), workers=2)


def test_that_a_run_goes_on_in_its_phase_bit_by_bit(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(SCHEDULE)
    options = ["--steps", "8", "--schedule", str(file)]
    saved = tmp_path / "saved"
    whole = train(*options, "--output", tmp_path / "whole", "--checkpoint", saved, "--every", "1")
    assert whole.returncode == 0, whole.stderr
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    phases = report["phases"]
    assert [phase["steps"] for phase in phases] == [4, 2, 2]
    assert [phase["policy"]["policy"] for phase in phases] == ["neuron", "block", "neuron"]
    assert report["rate_by_owners"] == 1.0
    assert phases[0]["resample_every"] == 2 and phases[0]["policy"]["design"] == "rolling"
    most = max(phase["state_bytes"] for phase in phases)
    assert most == phases[2]["state_bytes"] == max(worker["state_bytes"] for worker in report["workers"])
    assert 0.5 < phases[0]["state_share"] < 0.56 < phases[2]["state_share"] < 0.65
    assert "Phases" in whole.stdout and "rolling" in whole.stdout
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for step in (3, 4, 7):  # within drawn owners, between two phases, in the last one
        part = tmp_path / f"from-{step}"
        rest = train(*options, "--output", part, "--resume", saved / f"step-{step:08d}")
        assert rest.returncode == 0, rest.stderr
        found = load_file(part / "model.safetensors")
        assert all(torch.equal(value, expected[name]) for name, value in found.items()), step
        after = json.loads((part / "report.json").read_text())
        assert after["train_loss"] == report["train_loss"]
        assert after["plan_digest"] == report["plan_digest"]
        assert [phase["state_bytes"] is None for phase in after["phases"]] == [step >= 4, step >= 6, False]


def test_that_sharded_states_go_on_bit_by_bit_and_never_hold_what_data_parallelism_does(tmp_path: Path) -> None:
    options, saved = ["--steps", "4", "--schedule", "growing", "--sharded"], tmp_path / "saved"
    options += ["--rate-by-owners", "0.25"]
    whole = train(*options, "--output", tmp_path / "whole", "--checkpoint", saved, "--every", "3")
    assert whole.returncode == 0, whole.stderr
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["rate_by_owners"] == 0.25
    shares = [phase["state_share"] for phase in report["phases"]]
    # Two owners: all parameters, and half of gradients and AdamW's two moments.
    assert shares == sorted(shares) and shares[-1] == pytest.approx((1 + 0.5 + 1) / 4, abs=0.01)
    rest = train(*options, "--output", tmp_path / "rest", "--resume", saved / "step-00000003")
    assert rest.returncode == 0, rest.stderr
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    found = load_file(tmp_path / "rest" / "model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--schedule", "growin"], ["growin", "Did you mean 'growing'"]),
        (["--schedule", "absent.toml"], ["absent.toml", "no such file"]),
        (["--schedule", "growing", "--policy", "block"], ["--schedule growing", "Leave out --policy"]),
        (["--schedule", "growing", "--coverage", "0.5"], ["--coverage", "each phase"]),
        (["--schedule", "growing", "--steps", "2"], ["steps=2", "3 phases"]),
        (["--schedule", "growing", "--rate-by-owners", "-1"], ["--rate-by-owners"]),
        (["--schedule", "growing", "--rate-by-owners", "nan"], ["--rate-by-owners"]),
    ],
)
def test_that_a_schedule_that_cannot_be_is_one_clean_message(options: list[str], words: list[str]) -> None:
    result = run_command("train", "--workers", "2", *options)
    assert result.returncode == 2, result.stderr
    assert all(word in " ".join(result.stderr.split()) for word in words), result.stderr
    assert "Traceback" not in result.stderr
