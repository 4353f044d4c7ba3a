"""The campaign of faults in a short form, and that it would see a checkpoint which is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tools.kills.__main__ import faults, read
from tools.kills.trial import WORKERS, drawn

ROOT = Path(__file__).parents[2]
PATIENCE = os.environ.get("SDP_TEST_PATIENCE", "1")


def campaign(
    out: Path, kills: int, *more: str, code: tuple[str, ...] = ("-m", "tools.kills")
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *code, "--kills", str(kills), "--out", str(out), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "--patience", PATIENCE], capture_output=True, text=True, timeout=580, cwd=ROOT, env=environment
    )


def test_workers_that_are_killed_resume(tmp_path: Path) -> None:
    out = tmp_path / "kills.jsonl"
    kinds = "--kind", "neuron sharded", "--kind", "block"
    done = campaign(out, 12, *kinds)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    rows = read(out)
    assert faults(rows) == 12 and not any(row["problem"] for row in rows)
    assert [row["seed"] for row in rows] == list(range(len(rows)))
    out.write_text(out.read_text() + '{"seed": 99, "cut o')
    again = campaign(out, 12, *kinds)  # all are there
    assert again.returncode == 0 and "12 faults in " in again.stdout
    assert read(out) == rows


SABOTAGE = """
import sys
from dataclasses import replace
from sdp_compile.checkpoint import writing
from tools.kills.__main__ import main
real = writing._write
def wrong(file, item):
    if item.key == ("model", "head.bias"):
        item = replace(item, read=lambda read=item.read: read() + 1e-7)
    return real(file, item)
writing._write = wrong
sys.exit(main())
"""


def test_a_wrong_bit_is_seen(tmp_path: Path) -> None:
    out = tmp_path / "kills.jsonl"
    done = campaign(out, 1, "--kind", "block", code=("-c", SABOTAGE))
    assert done.returncode == 1, done.stdout[-6000:] + done.stderr[-3000:]
    assert "with a problem" in done.stdout or "cannot be trained" in done.stderr


def test_trials_follow_from_their_seeds_and_are_of_all_kinds() -> None:
    trials = [drawn(seed, 5.0) for seed in range(400)]
    assert trials == [drawn(seed, 5.0) for seed in range(400)]
    assert len({str(trial.kind) for trial in trials}) == 6
    assert {trial.fault for trial in trials} == {"kill", "stop", "stop and kill", "full disk", "read-only folder"}
    assert {len(trial.victims) for trial in trials if trial.fault == "kill"} == {1, 2, 3, WORKERS}
    assert all(set(trial.victims) <= set(range(WORKERS)) and trial.saves for trial in trials)
    assert json.loads(json.dumps([trial.seed for trial in trials])) == list(range(400))
