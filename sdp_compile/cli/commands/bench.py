"""The command ``bench``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sdp_compile.bench.one_of.settings import OneOfSettings
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.cli.commands import race_options
from sdp_compile.command_words import DEFAULT_WORKERS
from sdp_compile.errors import SDPError


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
    profile: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write a trace per variant; state the exposed communication.")
    ] = None,
    schedule: Annotated[
        str | None,
        options.schedule("Measure the phases of this schedule and its changes of plan, beside DDP and FSDP2."),
    ] = None,
    one_of: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Run one worker of N on this device, its peers' traffic left out."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="With --one-of: cpu, cuda, ... Default: an accelerator if there is one.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="With --one-of: autocast to bfloat16 or float16. Default: float32, without.")
    ] = None,
    length: Annotated[int | None, typer.Option(min=1, help="With --one-of: tokens per sample.")] = None,
    coverages: Annotated[
        str | None, typer.Option(metavar="LIST", help="With --one-of: several coverages, such as 1,0.75,0.5,0.25.")
    ] = None,
    links: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="With --one-of: links to predict. Default: nvlink,infiniband,10gbe."),
    ] = None,
    delay: Annotated[
        str | None,
        typer.Option(metavar="LINK|MS", help="With --one-of: collectives take as long as over a link, or MS per MiB."),
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
      sdp-compile bench --schedule growing --no-compile
      sdp-compile bench --workers 2 --json bench.json --plot bench.svg
      sdp-compile bench llama-134m --one-of 8 --dtype bfloat16
      sdp-compile bench --one-of 4 --device cpu --delay 10gbe --profile traces

    In one run all variants take turns of a few steps, in random order;
    ratios compare turns of the same round. Without MODEL it trains a GPT:
    6 layers, width 512, 8 heads, ffn 2048, sequence 128, float32. With
    MODEL the loss is its output's own, else the mean of its outputs.
    --schedule compiles the model anew in each round and goes through the
    phases; a change of plan is told in units of that run's median step.
    Without --variants, it is measured beside DDP and FSDP2. Its own variants
    are schedule and schedule-sharded.
    --one-of measures the step and the peak memory of one worker on the
    device at hand and predicts its traffic. It also knows the models
    gpt2-124m, gpt2-350m, llama-134m, llama-500m, llama-1b, resnet-50 and
    swin-t, and the variants local and sdp-*-sharded.
    --profile writes traces for Perfetto and states for how long collectives
    run, and for how much of that nothing computes; on the CPU --one-of
    shows the same with --delay, without peers.
    Exit codes: 0 measured; 1 a variant failed (its row says why), or its
    traffic differs from the formula; 2 wrong arguments; 130 Ctrl-C.
    """
    from sdp_compile.cli.bench import run

    with clean_errors(debug):
        if one_of is not None:
            if delay is not None and links is not None:
                raise SDPError("--delay and --links exclude each other. Leave one of them out.")
            given = {"workers": workers != DEFAULT_WORKERS, "replicas": replicas, "schedule": schedule}
            code = _one_of(
                given,
                debug,
                one_of=one_of,
                model=model or BenchSettings.model,
                device=device,
                dtype=dtype or OneOfSettings.dtype,
                batch=batch,
                length=length,
                rounds=rounds,
                steps=steps,
                coverages=_coverages(coverage, coverages),
                variants=race_options.names_of(variants),
                compile=compile,
                bucket_bytes=bucket_bytes,
                links=race_options.names_of(links) or OneOfSettings.links,
                timeout=timeout,
                seed=seed,
                inputs=tuple(inputs or ()),
                overrides=tuple(overrides or ()),
                size=options.size_of(small),
                json_path=json,
                plot_path=plot,
                profile_path=profile,
                delay=delay,
            )
            raise typer.Exit(code)
        alone = {
            "device": device,
            "dtype": dtype,
            "length": length,
            "coverages": coverages,
            "links": links,
            "delay": delay,
        }
        for name, value in alone.items():
            if value is not None:
                raise SDPError(f"--{name} belongs to --one-of. Add --one-of N, or leave it out.")
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
            profile_path=profile,
            schedule=schedule,
        )
        code = run(settings, debug)
    raise typer.Exit(code)


def _one_of(refused: dict[str, Any], debug: bool, **settings: Any) -> int:
    """Runs one worker of many. Returns the exit code."""
    from sdp_compile.cli.one_of import run

    for name, value in refused.items():
        if value:
            raise SDPError(f"--{name} and --one-of exclude each other. Leave one of them out.")
    return run(OneOfSettings(**settings), debug)


def _coverages(coverage: float | None, coverages: str | None) -> tuple[float, ...]:
    """Returns the coverages to measure."""
    if coverage is not None and coverages is not None:
        raise SDPError("--coverage and --coverages exclude each other. Leave one of them out.")
    if coverages is None:
        return OneOfSettings.coverages if coverage is None else (coverage,)
    try:
        return tuple(float(word) for word in coverages.split(","))
    except ValueError:
        raise SDPError(f"--coverages {coverages}: write numbers with commas between them, such as 1,0.5.") from None
