"""The commands ``bench`` and ``simulate``: SDP beside its peers, measured on this machine and predicted for others."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from sdp_compile.bench.settings import BenchSettings
from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.cli.simulate import Hardware
from sdp_compile.train.settings import DEFAULT_WORKERS

_GIVEN = Hardware()


class Collective(str, Enum):
    """How simulated collectives are carried out."""

    ring = "ring"
    tree = "tree"
    best = "best"


def bench(
    model: options.OptionalModel = None,
    workers: Annotated[int, typer.Option(min=2, help="Number of local workers.")] = DEFAULT_WORKERS,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each variant.")] = BenchSettings.rounds,
    steps: Annotated[int, typer.Option(min=1, help="Timed steps of each turn.")] = BenchSettings.steps,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples per worker. Default: 4, or those of MODEL's inputs.")
    ] = None,
    coverage: options.Coverage = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Owners of a unit, in place of --coverage.")] = None,
    variants: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these, such as 'ddp,fsdp2,sdp-*'. Default: all.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Each variant compiled, too.")] = True,
    bucket_bytes: Annotated[
        int | None, typer.Option(min=1, help="Bytes of a gradient bucket, DDP's too. Default: each one's own.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that a variant may take to get ready, or for one turn.")
    ] = BenchSettings.timeout,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, data and the order of turns.")] = 0,
    inputs: options.Inputs = None,
    overrides: options.Overrides = None,
    json: Annotated[str | None, typer.Option(metavar="PATH|-", help="Write all figures as JSON.")] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.png|.svg", help="Draw memory against step time; needs matplotlib.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Measure SDP against DDP and FSDP2 on this machine's workers: step time, memory, bytes sent.

    [bold]Variants[/bold], each eager and compiled (+compile)
      ddp                  gradients as bucket views, static graph
      ddp-checkpoint       activation checkpointing of every block
      fsdp2                fully_shard on every block and the root
      sdp-neuron, sdp-block                     forward masking
      sdp-neuron-sharded   with owner-sharded optimizer state
      sdp-backward-neuron, sdp-backward-block   backward masking

    [bold]Examples[/bold]
      sdp-compile bench
      sdp-compile bench --variants 'ddp,fsdp2,sdp-*' --no-compile
      sdp-compile bench transformers:gpt2 --set n_layer=6 --batch 8
      sdp-compile bench --workers 2 --json bench.json --plot bench.svg

    All variants take turns of a few steps, in random order, in one run;
    ratios are of turns in the same round. Without MODEL it is a GPT: 6
    layers, width 512, 8 heads, ffn 2048, sequence 128, float32. With
    MODEL the loss is its output's own, else the mean of its outputs.
    Exit codes: 0 measured; 1 a variant failed (its row says why), or
    traffic is not what the formula says; 2 wrong arguments; 130 Ctrl-C.
    """
    from sdp_compile.cli.bench import run

    with clean_errors(debug):
        settings = BenchSettings(
            model=model or BenchSettings.model,
            workers=workers,
            rounds=rounds,
            steps=steps,
            batch=batch,
            coverage=coverage,
            replicas=replicas,
            variants=tuple(name.strip() for name in variants.split(",")) if variants else (),
            compile=compile,
            bucket_bytes=bucket_bytes,
            timeout=timeout,
            seed=seed,
            inputs=tuple(inputs or ()),
            overrides=tuple(overrides or ()),
            json_path=json,
            plot_path=plot,
        )
        code = run(settings, debug)
    raise typer.Exit(code)


def simulate(
    model: options.OptionalModel = None,
    workers: Annotated[int, typer.Option(min=2, help="Number of workers, thousands too.")] = DEFAULT_WORKERS,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that they are on.")] = _GIVEN.nodes,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Samples per worker. Default: 4, or those of MODEL's inputs.")
    ] = None,
    coverage: options.Coverage = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="Owners of a unit, in place of --coverage.")] = None,
    variants: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Only these, as in bench, such as 'ddp,sdp-*'.")
    ] = None,
    bucket_bytes: Annotated[int | None, typer.Option(min=1, help="Bytes of a gradient bucket.")] = None,
    intra_bandwidth: Annotated[float, typer.Option(help="GB/s of a worker inside its node.")] = _GIVEN.intra_bandwidth,
    intra_latency: Annotated[float, typer.Option(help="Microseconds of a message there.")] = _GIVEN.intra_latency,
    inter_bandwidth: Annotated[float, typer.Option(help="GB/s of a node to others.")] = _GIVEN.inter_bandwidth,
    inter_latency: Annotated[float, typer.Option(help="Microseconds of a message there.")] = _GIVEN.inter_latency,
    tflops: Annotated[float, typer.Option(help="TFLOP/s that a worker really computes.")] = _GIVEN.tflops,
    update: Annotated[float, typer.Option(help="GB/s of parameters that the optimizer updates.")] = _GIVEN.update,
    cores: Annotated[
        int | None, typer.Option(min=1, help="Cores of a node that its workers share. Default: one processor each.")
    ] = None,
    algorithm: Annotated[Collective, typer.Option(help="Of collectives: the cheaper one, or always this.")] = (
        Collective.best
    ),
    validate: Annotated[
        bool, typer.Option("--validate", help="Probe this machine, predict and measure on it in one run.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="--validate: turns of each variant.")] = BenchSettings.rounds,
    steps: Annotated[int, typer.Option(min=1, help="--validate: timed steps of each turn.")] = BenchSettings.steps,
    timeout: Annotated[
        float, typer.Option(min=1, help="--validate: seconds to get ready, or for one turn.")
    ] = BenchSettings.timeout,
    inputs: options.Inputs = None,
    overrides: options.Overrides = None,
    json: Annotated[str | None, typer.Option(metavar="PATH|-", help="Write all figures as JSON.")] = None,
    debug: options.Debug = False,
) -> None:
    """Predict a training step on workers that this machine does not have: its time, and what each worker sends.

    [bold]Examples[/bold]
      sdp-compile simulate --workers 64 --nodes 8
      sdp-compile simulate transformers:gpt2 --workers 4096 --nodes 512
      sdp-compile simulate --workers 16 --nodes 16 --inter-bandwidth 1.2
      sdp-compile simulate --validate

    Collectives cost latency and bandwidth, computing costs FLOPs, and
    communication hides behind backward where it can; see the README.
    Exit codes: 0 predicted; 1 a variant could not be; 2 wrong arguments.
    """
    from sdp_compile.cli.simulate import SimulateSettings, run

    with clean_errors(debug):
        settings = SimulateSettings(
            BenchSettings(
                model=model or BenchSettings.model,
                workers=workers,
                rounds=rounds,
                steps=steps,
                batch=batch,
                coverage=coverage,
                replicas=replicas,
                variants=tuple(name.strip() for name in variants.split(",")) if variants else (),
                compile=False,
                bucket_bytes=bucket_bytes,
                timeout=timeout,
                inputs=tuple(inputs or ()),
                overrides=tuple(overrides or ()),
                json_path=json,
            ),
            Hardware(
                nodes,
                intra_bandwidth,
                intra_latency,
                inter_bandwidth,
                inter_latency,
                tflops,
                update,
                cores,
                algorithm.value,
            ),
            validate,
        )
        code = run(settings, debug)
    raise typer.Exit(code)
