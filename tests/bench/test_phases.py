"""The figures of a schedule: each run's own median step is the unit of its changes, and the slowest worker counts."""

from __future__ import annotations

from typing import Any

import pytest

from sdp_compile.bench.phases import slowest
from sdp_compile.bench.race import Entry, Turn
from sdp_compile.bench.result import summarise
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.variants import SCHEDULES, VARIANTS
from sdp_compile.errors import PolicyError, SDPError
from tests.bench.test_result import entry


def answer(step: float, change: float, state: int = 10) -> dict[str, Any]:
    """What a worker reports of one run in which both phases take as long."""
    parts = [
        {"phase": 1, "kind": "phase", "words": "half", "policy": {}, "share": 0.5, "rate": 0.0},
        {"phase": 2, "kind": "phase", "words": "all", "policy": {}, "share": 0.5, "rate": 0.0},
    ]
    changed = {"seconds": change, "next_step": 2 * step, "sent": 5, "total": 9}
    for part, one in zip(parts, (None, changed), strict=True):
        part |= {"step": step, "state": state, "change": one}
    run = {"compile": 7.0, "first_step": 3.0, "step": step, "seconds": step, "parts": parts}
    return {"seconds": step, "run": run}


def test_a_change_counts_in_steps_of_its_own_run() -> None:
    """The second round is three times as slow; in steps, its changes are the same."""
    answers = [[answer(1.0, 2.0), answer(0.5, 1.0, state=20)], [answer(3.0, 6.0), answer(1.0, 1.0)]]
    turns = [Turn(1, 0, 1.0), Turn(1, 1, 3.0)]
    found = Entry(SCHEDULES["schedule"], [{}, {}], turns, answers, wave=1)
    ddp = entry("ddp", [2.0, 6.0])
    result = summarise(BenchSettings(workers=2, rounds=2, schedule="growing"), [ddp, found])
    assert [row["name"] for row in result["variants"]] == ["ddp"]
    (row,) = result["schedules"]
    assert row["ratio"]["ddp"] == {"median": 0.5, "low": 0.5, "high": 0.5}
    first, last = row["parts"]
    assert first["ratio"]["ddp"]["median"] == last["ratio"]["ddp"]["median"] == 0.5
    assert first["change"] is None and first["state"] == 20  # that of the worker that holds most
    assert last["change"]["steps"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert last["change"]["next_steps"]["median"] == 2.0
    assert last["change"]["seconds"]["median"] == 4.0 and last["change"]["sent"] == 5
    assert row["step_seconds"]["median"] == 2.0 and row["compile_seconds"]["median"] == 7.0


def test_the_slowest_worker_counts() -> None:
    both = [{"a": 1.0, "b": [{"c": 5, "d": None}], "e": "x"}, {"a": 2.0, "b": [{"c": 4, "d": None}], "e": "x"}]
    assert slowest(both) == {"a": 2.0, "b": [{"c": 5, "d": None}], "e": "x"}


def test_a_schedule_that_fails_keeps_its_row_and_its_reason() -> None:
    failed = Entry(SCHEDULES["schedule+compile"], reason="worker 1: gone", details="Traceback")
    result = summarise(BenchSettings(workers=2, schedule="growing"), [entry("ddp", [1.0]), failed])
    assert (result["schedules"][0]["status"], result["schedules"][0]["reason"]) == ("failed", "worker 1: gone")


def test_who_takes_part() -> None:
    names = [variant.name for variant in BenchSettings(schedule="growing").chosen]
    assert names == ["ddp", "ddp+compile", "fsdp2", "fsdp2+compile", *SCHEDULES]
    assert len(SCHEDULES) == 4
    names = [variant.name for variant in BenchSettings(schedule="growing", compile=False).chosen]
    assert names == ["ddp", "fsdp2", "schedule", "schedule-sharded"]
    some = BenchSettings(schedule="growing", variants=("sdp-neuron",), compile=False).chosen
    assert [variant.name for variant in some] == ["sdp-neuron", "schedule", "schedule-sharded"]
    one = BenchSettings(schedule="growing", variants=("ddp", "schedule-sharded"), compile=False).chosen
    assert [(variant.name, variant.sharded) for variant in one] == [("ddp", False), ("schedule-sharded", True)]
    assert not SCHEDULES.keys() & VARIANTS.keys()
    with pytest.raises(SDPError, match="exclude each other"):
        BenchSettings(schedule="growing", profile_path=".")
    with pytest.raises(PolicyError, match="no such file"):
        BenchSettings(schedule="absent.toml")
