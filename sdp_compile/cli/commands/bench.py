"""The command ``bench``."""

from __future__ import annotations

from typing import Annotated

import typer

from sdp_compile.bench.settings import BenchSettings
from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.cli.commands import race_options
from sdp_compile.command_words import DEFAULT_WORKERS


def bench(
    model: options.OptionalModel = None,
    workers: race_options.Workers = DEFAULT_WORKERS,
    rounds: race_options.Rounds = BenchSettings.rounds,
    steps: race_options.Steps = BenchSettings.steps,
    batch: race_options.Batch = None,
    coverage: options.Coverage = None,
    replicas: options.Replicas = None,
    variants: race_options.Variants = None,
    compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Also measure each variant under torch.compile.")
    ] = True,
    bucket_bytes: race_options.BucketBytes = None,
    timeout: race_options.Timeout = BenchSettings.timeout,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for the weights, the data and the order of turns.")] = 0,
    small: options.SmallOrFull = None,
    inputs: options.Inputs = None,
    overrides: options.Overrides = None,
    json: options.Json = None,
    plot: Annotated[
        str | None, typer.Option(metavar="FILE.png|.svg", help="Plot memory against step time; needs matplotlib.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Measure SDP against DDP and FSDP2 with workers on this machine: step time, memory, bytes sent.

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

    In one run all variants take turns of a few steps, in random order;
    ratios compare turns of the same round. Without MODEL it trains a GPT:
    6 layers, width 512, 8 heads, ffn 2048, sequence 128, float32. With
    MODEL the loss is its output's own, else the mean of its outputs.
    Exit codes: 0 measured; 1 a variant failed (its row says why), or its
    traffic differs from the formula; 2 wrong arguments; 130 Ctrl-C.
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
            variants=race_options.names_of(variants),
            compile=compile,
            bucket_bytes=bucket_bytes,
            timeout=timeout,
            seed=seed,
            inputs=tuple(inputs or ()),
            overrides=tuple(overrides or ()),
            size=options.size_of(small),
            json_path=json,
            plot_path=plot,
        )
        code = run(settings, debug)
    raise typer.Exit(code)
