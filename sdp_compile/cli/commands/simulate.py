"""The command ``simulate``."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import Annotated, Any

import typer

from sdp_compile.bench.settings import BenchSettings
from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.cli.commands import race_options
from sdp_compile.command_words import DEFAULT_WORKERS
from sdp_compile.hardware import HARDWARE, Hardware
from sdp_compile.models.presets import PRESETS, Preset

_GIVEN = Hardware()


Nodes = Enum("Nodes", [(name, name) for name in HARDWARE], type=str)  # type: ignore[misc]  # from the names of HARDWARE
"""Names of hardware."""

_DEFAULT = Nodes("default")


class Collective(str, Enum):
    """How simulated collectives are carried out."""

    ring = "ring"
    tree = "tree"
    best = "best"


def simulate(
    context: typer.Context,
    model: options.OptionalModel = None,
    workers: race_options.Workers = DEFAULT_WORKERS,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines that the workers are on.")] = _GIVEN.nodes,
    batch: race_options.Batch = None,
    coverage: options.Coverage = None,
    replicas: options.Replicas = None,
    variants: race_options.Variants = None,
    bucket_bytes: race_options.BucketBytes = None,
    hardware: Annotated[
        Nodes, typer.Option(help="Machines by name; the options below change single figures of them.")
    ] = _DEFAULT,
    intra_bandwidth: Annotated[
        float, typer.Option(help="Bandwidth of a worker inside its node, in GB/s.")
    ] = _GIVEN.intra_bandwidth,
    intra_latency: Annotated[
        float, typer.Option(help="Latency of a message inside a node, in microseconds.")
    ] = _GIVEN.intra_latency,
    inter_bandwidth: Annotated[
        float, typer.Option(help="Bandwidth of a node to other nodes, in GB/s.")
    ] = _GIVEN.inter_bandwidth,
    inter_latency: Annotated[
        float, typer.Option(help="Latency of a message between nodes, in microseconds.")
    ] = _GIVEN.inter_latency,
    tflops: Annotated[float, typer.Option(help="TFLOP/s that a worker achieves.")] = _GIVEN.tflops,
    update: Annotated[
        float, typer.Option(help="GB/s of parameters that a worker's optimizer updates.")
    ] = _GIVEN.update,
    copy: Annotated[float, typer.Option(help="GB/s that a worker copies in its memory.")] = _GIVEN.copy,
    cores: Annotated[
        int | None,
        typer.Option(min=1, help="Cores of a node that its workers share. Default: one processor per worker."),
    ] = None,
    algorithm: Annotated[
        Collective, typer.Option(help="Collective algorithm; `best` takes the cheaper.")
    ] = Collective.best,
    memory: Annotated[float, typer.Option(help="Memory of a worker, in GB.")] = _GIVEN.memory,
    validate: Annotated[
        bool, typer.Option("--validate", help="Probe this machine, then predict and measure on it in one run.")
    ] = False,
    schedule: Annotated[
        str | None, options.schedule("Predict the phases of this schedule and its changes of plan, too.")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Predict other links between nodes and other batches, too.")
    ] = False,
    rounds: race_options.Rounds = BenchSettings.rounds,
    steps: race_options.Steps = BenchSettings.steps,
    timeout: race_options.Timeout = BenchSettings.timeout,
    small: options.FullOrSmall = None,
    inputs: options.Inputs = None,
    overrides: options.Overrides = None,
    json: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """Predict a training step on workers that this machine does not have: its time, and what each worker sends.

    [bold]Examples[/bold]
      sdp-compile simulate --workers 64 --nodes 8
      sdp-compile simulate transformers:gpt2 --workers 4096 --nodes 512
      sdp-compile simulate --workers 16 --nodes 16 --inter-bandwidth 1.2
      sdp-compile simulate llama-8b --hardware h100 --workers 64 --nodes 8
      sdp-compile simulate --workers 64 --nodes 8 --sensitivity
      sdp-compile simulate --workers 64 --nodes 8 --schedule growing
      sdp-compile simulate --validate

    MODEL can also be gpt2-124m, llama-1b, llama-8b or llama-70b, of 2 x 1,024
    tokens per worker.
    Collectives cost latency and bandwidth, computation costs FLOPs, and
    communication hides behind backward where it can; see the README.
    --rounds, --steps and --timeout belong to --validate, which measures
    and so takes the small configuration of a named model.
    Exit codes: 0 predicted; 1 a variant has no prediction; 2 wrong
    arguments; 130 stopped by Ctrl-C.
    """
    from sdp_compile.cli.simulate import SimulateSettings, run

    with clean_errors(debug):
        named = PRESETS.get(model or "", Preset(model or BenchSettings.model, inputs=()))
        given = Hardware(
            nodes,
            intra_bandwidth,
            intra_latency,
            inter_bandwidth,
            inter_latency,
            tflops,
            update,
            copy,
            cores,
            algorithm.value,
            memory,
        )
        figures: dict[str, Any] = {}
        for name, value in HARDWARE[hardware.value].items():
            source = context.get_parameter_source(name)
            if source is None or source.name == "DEFAULT":  # typer has an enumeration of its own
                figures[name] = value
        settings = SimulateSettings(
            BenchSettings(
                model=named.model,
                workers=workers,
                rounds=rounds,
                steps=steps,
                batch=batch,
                coverage=coverage,
                replicas=replicas,
                variants=race_options.names_of(variants),
                compile=False,
                bucket_bytes=bucket_bytes,
                timeout=timeout,
                inputs=tuple(inputs or named.inputs),
                overrides=(*named.settings, *(overrides or ())),
                size=options.size_of(small),
                json_path=json,
            ),
            replace(given, **figures),
            validate,
            sensitivity,
            model if model in PRESETS else None,
            schedule,
        )
        code = run(settings, debug)
    raise typer.Exit(code)
