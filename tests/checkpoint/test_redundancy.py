"""Copies of all owners: any workers' files may get lost that leave each unit an owner."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import sdp_compile as sdp
from sdp_compile.checkpoint.manifest import _digest
from sdp_compile.checkpoint.merge import merge
from sdp_compile.cli.main import app
from sdp_compile.errors import SDPError
from tests.checkpoint.training import Run, same
from tests.distributed import run_workers
from tests.runtime.models import build

pytestmark = pytest.mark.filterwarnings("ignore:.*calibrate")

WORKERS = 4  # each unit has 2 owners


def saved(rank: int, folder: Path, sharded: bool, redundancy: str) -> Any:
    run = Run("transformer", "neuron", rank, sharded)
    run.train(2)
    place = run.save(folder, 2, redundancy=redundancy)
    owners = [set(piece.owners) for name in run.model.plan.state for piece in run.model.plan.pieces(name)]
    return place, run.state(), owners


def without(place: Path, workers: tuple[int, ...], target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(place, target)
    for worker in workers:
        for name in (f"__{worker}_0.distcp", f"worker-{worker}.json"):
            (target / name).unlink()
    return target


def run_command(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.mark.parametrize("sharded", [False, True])
def test_any_subset_that_covers_each_unit_gives_everything_back(sharded: bool, tmp_path: Path) -> None:
    place, expected, owners = run_workers(saved, WORKERS, tmp_path, sharded, "owners")[0]
    outcomes = set()
    for count in range(WORKERS):
        for lost in combinations(range(WORKERS), count):
            left = without(place, lost, tmp_path / "left" / place.name)
            covered = all(group - set(lost) for group in owners)
            outcomes.add(covered)
            dense = Run("transformer", "dense", seed=9)
            if covered:
                dense.load(left, loader=False)
                same(dense.state(), expected, leave_out=("groups",))
                merged = merge(left, tmp_path / "model.safetensors")
                assert len(merged.damaged) == (0 if not lost else len(merged.damaged)) and bool(merged.damaged) == bool(
                    lost
                )
                values = load_file(tmp_path / "model.safetensors")
                assert {f"model {key}" for key in values} == {key for key in expected if key.startswith("model ")}
                for key, value in values.items():
                    assert torch.equal(value, expected[f"model {key}"])
                build("transformer", 9).load_state_dict(values, strict=True)
            else:
                with pytest.raises(SDPError, match="lacks parts of the model that no other file holds"):
                    dense.load(left, loader=False)
                with pytest.raises(
                    SDPError, match=r"no other file holds: units? .*\[.*\] \(workers \d, \d\)"
                ) as raised:
                    merge(left, tmp_path / "other.safetensors")
                named = str(raised.value).partition("(workers ")[2][:4].split(", ")
                assert {int(one) for one in named} <= set(lost)
                assert not (tmp_path / "other.safetensors").exists()
    assert outcomes == {True, False}


def test_any_three_of_eight_workers_may_be_lost(tmp_path: Path) -> None:
    place, expected, owners = run_workers(saved, 8, tmp_path, True, "owners", limit=200)[0]
    assert {len(group) for group in owners} == {4, 8}
    for lost in combinations(range(8), 3):
        left = without(place, lost, tmp_path / "left" / place.name)
        dense = Run("transformer", "dense", seed=9)
        dense.load(left, loader=False)
        same(dense.state(), expected, leave_out=("groups",))
    fatal = {tuple(sorted(group)) for group in owners if len(group) == 4}
    assert fatal
    for lost in fatal:
        with pytest.raises(SDPError, match="no other file holds"):
            Run("transformer", "dense").load(without(place, lost, tmp_path / "left" / place.name), loader=False)


def goes_on(rank: int, place: Path) -> Any:
    run = Run("transformer", "neuron", rank, sharded=True)
    with pytest.raises(SDPError, match=r"optimizer's state: units? \d.* of .* \(worker 2\).*, which is exp_avg of"):
        run.load(place)
    options: dict[str, Any] = {"scheduler": run.scheduler, "reset_lost_optimizer_state": True}
    restored = sdp.load_checkpoint(place, run.model, run.optimizer, **options)
    return restored.reset, run.state(), run.train(2)


def test_lost_optimizer_states_begin_anew_if_asked(tmp_path: Path) -> None:
    place, expected, _ = run_workers(saved, WORKERS, tmp_path, True, "owners")[0]
    path = place / "manifest.json"
    document = json.loads(path.read_text())
    (lost,) = [number for number, one in enumerate(document["checkpoint"]["files"]) if one["name"] == "__2_0.distcp"]
    for entries in document["checkpoint"]["optimizer"]["tensors"].values():
        for entry in entries.values():  # as if the holders had written alone
            seen: dict[str, Any] = {}
            for chunk in entry["chunks"]:
                if chunk["file"] == lost or str(chunk["offsets"]) not in seen:
                    seen[str(chunk["offsets"])] = chunk
            entry["chunks"] = list(seen.values())
    document["digest"] = _digest(document["checkpoint"])
    path.write_text(json.dumps(document))
    left = without(place, (2,), tmp_path / "left" / place.name)
    results = run_workers(goes_on, WORKERS, left)
    target = tmp_path / "model.safetensors"
    refused = run_command("merge", left, "-o", target)
    assert refused.exit_code == 2 and "--reset-lost-optimizer-state" in refused.output and not target.exists()
    assert run_command("merge", left, "-o", target, "--reset-lost-optimizer-state").exit_code == 0
    assert torch.equal(load_file(target)["norm.weight"], expected["model norm.weight"])
    names = set(results[0][0])
    assert names and all(set(reset) == names for reset, _, _ in results)
    found = results[0][1]
    for key, value in expected.items():
        if key.startswith("model "):
            assert torch.equal(value, found[key])
        elif key.startswith("optimizer "):
            assert (key in found and torch.equal(value, found[key])) != (key.split()[1] in names), key


def test_a_damaged_copy_is_left_out_and_named(tmp_path: Path) -> None:
    place, expected, _ = run_workers(saved, WORKERS, tmp_path, False, "owners")[0]
    path = place / "__1_0.distcp"
    manifest = json.loads((place / "manifest.json").read_text())["checkpoint"]
    chunks = [
        one for one in manifest["model"]["norm.weight"]["chunks"] if manifest["files"][one["file"]]["worker"] == 1
    ]
    content = bytearray(path.read_bytes())
    content[chunks[0]["start"]] ^= 1
    path.write_bytes(content)
    dense = Run("transformer", "dense", seed=9)
    dense.load(place, loader=False)
    same(dense.state(), expected, leave_out=("groups",))
    result = run_command("merge", place, "-o", tmp_path / "model.safetensors")
    assert result.exit_code == 0 and "1_0.distcp is damaged at byte" in result.output.replace("\n", "")
    assert torch.equal(load_file(tmp_path / "model.safetensors")["norm.weight"], expected["model norm.weight"])


def test_the_command_line_shows_what_is_there(tmp_path: Path) -> None:
    place, _, _ = run_workers(saved, WORKERS, tmp_path, True, "none")[0]
    result = run_command("checkpoint", tmp_path, "--json", tmp_path / "facts.json")
    assert result.exit_code == 0, result.output
    assert "Every part is there." in result.output and "AdamW" in result.output
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert (facts["step"], facts["workers"], facts["whole"], facts["redundancy"]) == (2, WORKERS, True, "none")
    assert facts["optimizer_bytes"] == 2 * facts["model_bytes"] and len(facts["files"]) == 2 * WORKERS
    (place / "__2_0.distcp").unlink()
    result = run_command("checkpoint", place)
    assert result.exit_code == 1 and "Lost: " in result.output and "(worker 2)" in result.output
    result = run_command("merge", place, "-o", tmp_path / "model.safetensors")
    assert result.exit_code == 2 and "no other file holds" in result.output
    for arguments in (["checkpoint", tmp_path / "nothing"], ["merge", sys.executable]):
        assert run_command(*arguments).exit_code == 2
