"""``sdp-compile simulate``: predicts a training step, and with ``--validate`` measures it on this machine too."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sdp_compile.bench.settings import GPT, BenchSettings
from sdp_compile.bench.variants import LOCAL
from sdp_compile.cli.clean_errors import FAILED
from sdp_compile.cli.json_file import write_json
from sdp_compile.cli.model_line import tell_memory, tell_notes
from sdp_compile.command_words import check_file_words
from sdp_compile.errors import SDPError
from sdp_compile.hardware import Hardware
from sdp_compile.models.configuration import Loaded, count_parameters, to_dict
from sdp_compile.models.presets import PRESETS
from sdp_compile.models.words import parse_model
from sdp_compile.processes import interruptible
from sdp_compile.progress import stages

if TYPE_CHECKING:
    from sdp_compile.bench.simulated import Subject
    from sdp_compile.bench.work import Work
    from sdp_compile.policies import Schedule
    from sdp_compile.simulator.cluster import Cluster
    from sdp_compile.simulator.collectives import Algorithm
    from sdp_compile.simulator.simulate import Strategy


@dataclass(frozen=True)
class SimulateSettings:
    """The options of one run: ``bench`` names the training, ``hardware`` the machines; ``validate`` probes this one.

    ``sensitivity`` also predicts other links between nodes and other batches, and ``preset`` is the short name by which
    the model was given. ``schedule`` is predicted beside the variants.
    """

    bench: BenchSettings
    hardware: Hardware
    validate: bool = False
    sensitivity: bool = False
    preset: str | None = None
    schedule: str | None = None

    def __post_init__(self) -> None:
        if self.bench.workers % self.hardware.nodes:
            raise SDPError(
                f"--workers {self.bench.workers} --nodes {self.hardware.nodes}: the workers do not divide evenly among "
                "the nodes. Choose a multiple."
            )
        if self.validate and self.hardware.nodes > 1:
            raise SDPError("--validate measures on this machine. Leave --nodes out.")
        if self.schedule is not None:
            check_file_words("--schedule", self.schedule, "a schedule's name")

    def sized(self) -> BenchSettings:
        """Returns ``bench`` with the default size of a named model: published, or small where weights are needed."""
        if self.bench.size is not None or self.bench.model == GPT or parse_model(self.bench.model).kind == "factory":
            return self.bench
        return replace(self.bench, size="small" if self.validate else "full")


def run(settings: SimulateSettings, debug: bool = False) -> int:
    """Predicts, and measures with ``validate``; prints and writes. Returns the exit code."""
    from sdp_compile.policies import resolve_schedule

    # What cannot be is refused before the model is captured.
    schedule = None if settings.schedule is None else resolve_schedule(settings.schedule)
    described = None if settings.validate else _cluster(settings)
    from sdp_compile.bench.sensitivity import sensitivity
    from sdp_compile.bench.simulated import Subject
    from sdp_compile.bench.work import make_work
    from sdp_compile.cli.simulate_report import render
    from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
    from sdp_compile.simulator.phases import CHANGES
    from sdp_compile.simulator.simulate import ASSUMPTIONS

    bench, console = settings.sized(), Console(stderr=settings.bench.json_path == "-")
    with stages(2) as begin:
        begin(f"capturing {bench.model}")
        work = make_work(bench, 0, "meta")  # FLOPs and bytes follow from shapes
        subject = Subject(work, bench)
    tell_notes(work.configuration)
    named = PRESETS.get(settings.preset or "")
    configuration = work.configuration
    if named is not None:  # its settings are no changes, but the published sizes
        changes = configuration.changes[len(named.settings) :]
        configuration = replace(configuration, source=named.source, changes=changes)
    measured: dict[str, Any] = {}
    if described is None:
        cluster, measured = _measure(settings, bench, work, subject, debug)
        outcomes = subject.predict(bench.chosen, cluster, "ring", DEFAULT_BUCKET_BYTES)
        phases = _schedule(schedule, subject, bench, cluster, "ring", DEFAULT_BUCKET_BYTES)
    else:
        cluster = described
        outcomes = subject.predict(bench.chosen, cluster, settings.hardware.algorithm)
        phases = _schedule(schedule, subject, bench, cluster, settings.hardware.algorithm)
    ratios = sensitivity(subject, bench.chosen, cluster, settings.hardware.algorithm) if settings.sensitivity else []
    result = {
        "version": 1,
        "model": settings.preset or bench.model,
        "configuration": to_dict(configuration, count_parameters(work.model), work.example_inputs),
        "workers": bench.workers,
        "cluster": {**asdict(cluster), "measured": settings.validate},
        "memory": None if settings.validate else settings.hardware.memory * 1e9,
        "assumptions": [*ASSUMPTIONS, *(CHANGES if phases else ())],
        "sensitivity": [asdict(ratio) for ratio in ratios],
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
        "schedule": phases and {"name": settings.schedule, **phases},
    }
    console.print(render(result))
    write_json(bench.json_path, result)
    return FAILED if any(outcome.prediction is None for outcome in outcomes) else 0


def _cluster(settings: SimulateSettings) -> Cluster:
    from sdp_compile.simulator.cluster import Cluster

    return Cluster.of(settings.hardware, settings.bench.workers)


def _schedule(
    schedule: Schedule | None,
    subject: Subject,
    bench: BenchSettings,
    cluster: Cluster,
    algorithm: Algorithm,
    bucket_bytes: int | None = None,
) -> dict[str, Any] | None:
    """Returns what is predicted of a schedule, and of DDP and FSDP2 beside it."""
    if schedule is None:
        return None
    from sdp_compile.inspector.phases import words
    from sdp_compile.planning.nodes import Launch
    from sdp_compile.planning.phases import planned_parts
    from sdp_compile.simulator.phases import simulate_schedule
    from sdp_compile.simulator.simulate import simulate

    parts = planned_parts(subject.analysis, schedule, bench.workers, Launch(cluster.workers_per_node))
    size = bench.bucket_bytes or bucket_bytes
    found = simulate_schedule(parts, cluster, bucket_bytes=size, algorithm=algorithm).to_dict()
    for row, one in zip(found["parts"], parts, strict=True):
        row["words"] = words(schedule, one.part)
    peers: tuple[Strategy, ...] = ("ddp", "fsdp2")
    for peer in peers:
        step = simulate(subject.dense, cluster, peer, bucket_bytes=bench.bucket_bytes, algorithm=algorithm)
        found[peer] = step.to_dict()
        found[f"of_{peer}"] = (found["step_seconds"] + found["changing_seconds"]) / step.seconds
    return found


def _measure(
    settings: SimulateSettings, bench: BenchSettings, work: Work, subject: Subject, debug: bool
) -> tuple[Cluster, dict[str, Any]]:
    """Measures this machine and each variant on it in one run. Returns the cluster, and the rows by variant."""
    from sdp_compile.bench import race
    from sdp_compile.bench.result import summarise
    from sdp_compile.simulator.measured import measured_cluster

    if bench.size == "full":
        outline = Loaded(work.model, work.example_inputs, work.configuration)
        held = f"weights, gradients and AdamW state of {bench.workers} workers, without activations"
        tell_memory(outline, bench.model, 16 * bench.workers, held)
    variants = [LOCAL, *bench.chosen]
    with interruptible(), stages(race.stages(bench, variants)) as begin:
        entries = race.race(bench, variants, begin)
    local = entries[0]
    if debug:
        sys.stderr.writelines(f"{entry.variant.name}:\n{entry.details}" for entry in entries if entry.details)
    if local.reason:
        raise SDPError(f"This machine could not be measured: {local.reason}")
    cluster = measured_cluster(
        local.answers, subject.dense.flops(), subject.dense.memory().gradients, settings.hardware.cores
    )
    rows = summarise(bench, entries)["variants"]
    return cluster, {row["name"]: row for row in rows}
