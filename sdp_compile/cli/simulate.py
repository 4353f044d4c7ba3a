"""``sdp-compile simulate``: a training step on workers that this machine does not have, or checked on those it has."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console

from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.variants import LOCAL
from sdp_compile.cli.clean_errors import FAILED
from sdp_compile.cli.json_file import write_json
from sdp_compile.errors import SDPError
from sdp_compile.processes import interruptible
from sdp_compile.progress import stages


@dataclass(frozen=True)
class Hardware:
    """What the command line says of the machines; defaults are of the size of a node of eight H100.

    Bandwidths are GB/s of a worker inside its node, and of a node; latencies microseconds; ``tflops`` what a worker
    really computes per second; ``update`` the GB/s of parameters that AdamW updates (it moves seven times as much).
    """

    nodes: int = 1
    intra_bandwidth: float = 300.0
    intra_latency: float = 10.0
    inter_bandwidth: float = 50.0
    inter_latency: float = 20.0
    tflops: float = 30.0
    update: float = 400.0
    cores: int | None = None
    algorithm: Literal["ring", "tree", "best"] = "best"


@dataclass(frozen=True)
class SimulateSettings:
    """``bench`` says what is trained by whom; with ``validate`` the machine is this one, probed."""

    bench: BenchSettings
    hardware: Hardware
    validate: bool = False

    def __post_init__(self) -> None:
        if self.bench.workers % self.hardware.nodes:
            raise SDPError(
                f"--workers {self.bench.workers} --nodes {self.hardware.nodes}: each node has equally many workers."
            )
        if self.validate and self.hardware.nodes > 1:
            raise SDPError("--validate measures on this machine: leave --nodes out.")


def run(settings: SimulateSettings, debug: bool = False) -> int:
    """Predict, and with ``validate`` measure; print, write; the exit code."""
    from sdp_compile.bench.simulated import Subject
    from sdp_compile.bench.work import make_work
    from sdp_compile.cli.simulate_report import render

    bench, console = settings.bench, Console(stderr=settings.bench.json_path == "-")
    with stages(2) as begin:
        begin(f"capturing {bench.model}")
        subject = Subject(make_work(bench, 0, "cpu"), bench)
    measured: dict[str, Any] = {}
    if settings.validate:
        cluster, measured = _measure(settings, subject, debug)
        outcomes = subject.predict(bench.chosen, cluster, "ring")
    else:
        cluster = _cluster(settings)
        outcomes = subject.predict(bench.chosen, cluster, settings.hardware.algorithm)
    result = {
        "version": 1,
        "model": bench.model,
        "workers": bench.workers,
        "cluster": {**asdict(cluster), "measured": settings.validate},
        "variants": [
            {
                "name": outcome.variant.name,
                "label": outcome.variant.label,
                "predicted": outcome.prediction and outcome.prediction.to_dict(),
                "reason": outcome.reason,
                "measured": measured.get(outcome.variant.name),
            }
            for outcome in outcomes
        ],
    }
    console.print(render(result))
    write_json(bench.json_path, result)
    return FAILED if any(outcome.prediction is None for outcome in outcomes) else 0


def _cluster(settings: SimulateSettings) -> Any:
    from sdp_compile.simulator.cluster import Cluster, Link

    given = settings.hardware
    return Cluster(
        given.nodes,
        settings.bench.workers // given.nodes,
        Link.of(given.intra_latency * 1e-6, given.intra_bandwidth * 1e9),
        Link.of(given.inter_latency * 1e-6, given.inter_bandwidth * 1e9),
        given.tflops * 1e12,
        given.update * 1e9,
        given.cores,
    )


def _measure(settings: SimulateSettings, subject: Any, debug: bool) -> tuple[Any, dict[str, Any]]:
    """The cluster that this machine is, and what each variant took on it, measured in one run."""
    from sdp_compile.bench import race
    from sdp_compile.bench.result import summarise
    from sdp_compile.simulator.measured import measured_cluster

    bench = settings.bench
    variants = [LOCAL, *bench.chosen]
    with interruptible(), stages(race.stages(bench, variants)) as begin:
        entries = race.race(bench, variants, begin)
    local = entries[0]
    if debug:
        sys.stderr.writelines(f"{entry.variant.name}:\n{entry.details}" for entry in entries if entry.details)
    if local.reason:
        raise SDPError(f"This machine could not be measured: {local.reason}")
    cluster = measured_cluster(
        local.probes, subject.dense.flops(), subject.dense.memory().gradients, settings.hardware.cores
    )
    rows = summarise(bench, entries)["variants"]
    return cluster, {row["name"]: row for row in rows}
