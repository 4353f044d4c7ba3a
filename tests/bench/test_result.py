"""Figures from turns: medians, quartiles, ratios of turns in the same round, and messages about wrong traffic."""

from typing import Any

import pytest

from sdp_compile.bench.race import Entry, Turn
from sdp_compile.bench.result import mistakes, summarise
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.spread import Spread, paired_ratio
from sdp_compile.bench.variants import VARIANTS

MEMORY = dict.fromkeys("parameters buffers gradients optimizer activations state peak".split(), 1)


def worker(**changes: Any) -> dict[str, Any]:
    traffic = {"sent": 100.0, "collectives": 2, "predicted": 100.0, "padding": 0.0, "as_predicted": True}
    return {
        "ready_seconds": 1.0,
        "losses": [1.0],
        "memory": MEMORY,
        "traffic": traffic,
        "flops": None,
        "samples": 4,
        "tokens": None,
        "parameters": 10,
        "device": "cpu",
        **changes,
    }


def entry(name: str, seconds: list[float], wave: int = 1, **changes: Any) -> Entry:
    turns = [Turn(wave, number, one) for number, one in enumerate(seconds)]
    return Entry(VARIANTS[name], [worker(**changes), worker(**changes)], turns, wave)


def test_quartiles_are_those_of_the_sample() -> None:
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_ratio_is_of_turns_in_the_same_round() -> None:
    """A disturbance that slows the machine slows both turns."""
    slow = [1.0, 10.0, 1.0]
    ratio = paired_ratio(entry("sdp-neuron", [one / 2 for one in slow]), entry("ddp", slow))
    assert ratio == Spread(0.5, 0.5, 0.5)


def test_waves_are_not_mixed() -> None:
    ddp = entry("ddp", [1.0])
    ddp.turns.append(Turn(2, 0, 4.0))
    late = entry("sdp-neuron", [2.0], wave=2)
    result = summarise(BenchSettings(workers=2, rounds=1), [ddp, late, entry("fsdp2", [3.0])])
    ratios = result["variants"][1]["ratio"]
    assert ratios["ddp"]["median"] == 0.5
    assert "fsdp2" not in ratios  # the two never took part in the same round


def test_throughput_is_that_of_all_workers() -> None:
    (variant,) = summarise(BenchSettings(workers=2), [entry("ddp", [0.5, 0.5, 0.5])])["variants"]
    assert variant["samples_per_second"] == 16.0
    assert variant["tokens_per_second"] is None


def test_a_failed_variant_keeps_its_row_and_its_reason() -> None:
    failed = Entry(VARIANTS["fsdp2"], reason="worker 1: gone", details="Traceback")
    row = summarise(BenchSettings(workers=2), [entry("ddp", [1.0]), failed])["variants"][1]
    assert (row["status"], row["reason"]) == ("failed", "worker 1: gone")


def test_the_balance_of_work_is_that_of_flops() -> None:
    loaded = entry("sdp-block", [1.0], flops=3.0)
    loaded.workers[1]["flops"] = 1.0
    (variant,) = summarise(BenchSettings(workers=2), [loaded])["variants"]
    assert variant["flops_imbalance"] == pytest.approx(1.5)


def test_traffic_that_differs_from_the_formula_is_reported_by_worker() -> None:
    wrong = entry("sdp-neuron", [1.0])
    wrong.workers[1]["traffic"] = {**wrong.workers[1]["traffic"], "sent": 200.0, "as_predicted": False}
    result = summarise(BenchSettings(workers=2), [entry("ddp", [1.0]), wrong])
    (message,) = mistakes(result)
    assert "sdp-neuron" in message and "worker 1 sent 200" in message and "100" in message
