"""The command ``train``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.command_words import DEFAULT_RATE_BY_OWNERS, DEFAULT_SCHEDULE, DEFAULT_WORKERS
from sdp_compile.errors import DistributedError, PolicyError
from sdp_compile.train.settings import TrainSettings, joined_workers


class Level(str, Enum):
    """What is owned: neurons (axes), residual blocks, or the level that suits the model."""

    neuron = "neuron"
    block = "block"
    auto = "auto"


class Reduction(str, Enum):
    """How the gradients of a unit's owners make up the unit's."""

    mean = "mean"
    sum = "sum"
    tokens = "tokens"


def train(
    workers: Annotated[
        int | None, typer.Option(min=1, help=f"Number of local workers. Default: {DEFAULT_WORKERS}, or torchrun's.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of optimizer steps.")] = TrainSettings.steps,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="Policy that decides who owns what, in all steps.",
            autocompletion=options.complete_policy,
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        options.schedule(
            f"Schedule of policies. Default: {DEFAULT_SCHEDULE}, without --policy and options of a policy."
        ),
    ] = None,
    coverage: options.Coverage = None,
    masking: options.Masking = None,
    node_size: options.NodeSize = None,
    passes: options.Passes = None,
    reduction: Annotated[
        Reduction,
        typer.Option(
            help="How the gradients of a unit's owners make up its gradient: their mean, the sum over all workers, or "
            "their mean weighted by tokens. Batches are equal here, so all three agree."
        ),
    ] = Reduction.mean,
    sharded: Annotated[
        bool | None,
        typer.Option(
            "--sharded/--no-sharded",
            help="Split gradients and optimizer state of each unit among its owners. Default: in the default schedule.",
        ),
    ] = None,
    rate_by_owners: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="POWER",
            help="Multiply the learning rate of each parameter by the share of the workers that own it, to this "
            f"power. Default: {DEFAULT_RATE_BY_OWNERS:g} in the default schedule, otherwise the schedule's.",
        ),
    ] = None,
    level: Annotated[Level | None, typer.Option(help="Use the built-in policy of this name.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for the initial weights and the batches.")] = 0,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Also train dense data parallel (DDP), for comparison.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder to write model.safetensors to.")] = Path(TrainSettings.output),
    json: Annotated[
        Path | None, typer.Option(help="File to write the report to. Default: report.json in --output.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder to save checkpoints in.")] = None,
    every: Annotated[int, typer.Option(min=1, help="Save a checkpoint after so many steps.")] = TrainSettings.every,
    keep: Annotated[int | None, typer.Option(min=1, help="Number of checkpoints that stay. Default: all.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="auto|PATH", help="Go on from this checkpoint; `auto`: from the newest, if there is one."),
    ] = None,
    asynchronous: Annotated[
        bool, typer.Option("--asynchronous", help="Write checkpoints in the background, while training goes on.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Repair what differs between owners by what most of them hold, and go on."),
    ] = False,
    reset_lost_optimizer_state: options.ResetLost = False,
    local_checkpoint: Annotated[
        bool, typer.Option("--local-checkpoint", help="The folder of --checkpoint is on each node's own disk.")
    ] = False,
    max_restarts: Annotated[
        int,
        typer.Option(min=0, help="Start the workers again so often after one was lost, from the newest checkpoint."),
    ] = 0,
    min_workers: Annotated[
        int | None,
        typer.Option(min=1, help="Go on without the workers that were lost, with at least so many. Default: with all."),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Compile a small GPT into subnetworks and train it on the source text of Python's standard library.

    [bold]Examples[/bold]
      sdp-compile train
      sdp-compile train --workers 2 --steps 50 --baseline
      sdp-compile train --policy block --coverage 0.25 --workers 8
      sdp-compile train --policy neuron --coverage 0.5
      sdp-compile train --masking backward
      sdp-compile train --policy my_policy.toml --output runs/one
      sdp-compile train --schedule growing --steps 600 --baseline
      sdp-compile train --checkpoint runs/one --keep 3 --resume auto
      sdp-compile train --checkpoint runs/one --max-restarts 3 --min-workers 3

    By default it trains halves of the model, then all of it, with gradients
    and optimizer state split among owners: four workers never hold more than
    0.44 of what data parallelism does, two 0.63.

    Under torchrun it joins the existing process group instead of starting
    workers. With --checkpoint, SIGTERM and SIGUSR1 save a checkpoint and
    stop. Exit codes: 0 trained; 1 a worker failed; 2 wrong arguments, or a
    policy or checkpoint that does not fit; 65 owners differ or gradients
    are infinite or NaN, and --resume auto goes on from the newest clean
    checkpoint; 75 saved and stopped after SIGTERM or SIGUSR1; 130 stopped
    by Ctrl-C.
    """
    # Imported here, and torch only inside: --help and wrong options answer at once.
    from sdp_compile.cli.train import join
    from sdp_compile.cli.train import train as start

    with clean_errors(debug):
        if policy is not None and level is not None:
            raise PolicyError(f"--policy {policy} and --level {level.value} exclude each other. Leave one out.")
        if schedule is not None and (policy is not None or level is not None):
            raise PolicyError(f"--schedule {schedule} has policies of its own. Leave out --policy and --level.")
        is_default = all(option is None for option in (schedule, policy, level, coverage, masking))
        joined = joined_workers(workers)
        if joined and max_restarts:
            raise DistributedError("--max-restarts is torchrun's here: give it to torchrun, before the command.")
        settings = TrainSettings(
            workers=joined or workers or DEFAULT_WORKERS,
            steps=steps,
            policy=policy or (level.value if level else "neuron"),
            schedule=DEFAULT_SCHEDULE if is_default else schedule,
            coverage=coverage,
            masking=masking and masking.value,
            node_size=node_size,
            passes=passes,
            reduction=reduction.value,
            rate_by_owners=DEFAULT_RATE_BY_OWNERS if is_default and rate_by_owners is None else rate_by_owners,
            sharded=is_default if sharded is None else sharded,
            seed=seed,
            baseline=baseline,
            output=str(output),
            json_path=str(json) if json else None,
            debug=debug,
            checkpoint=str(checkpoint) if checkpoint else None,
            every=every,
            keep=keep,
            resume=resume,
            asynchronous=asynchronous,
            repair=repair,
            reset_lost_optimizer_state=reset_lost_optimizer_state,
            local_checkpoint=local_checkpoint,
            max_restarts=max_restarts,
            min_workers=min_workers,
        )
        if joined:
            join(settings)
        else:
            start(settings)
