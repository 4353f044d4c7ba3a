"""The command ``plan``."""

from __future__ import annotations

from typing import Annotated

import typer

from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.command_words import DEFAULT_WORKERS


def plan(
    model: options.Model,
    policy: options.Policy = "auto",
    coverage: options.Coverage = None,
    masking: options.Masking = None,
    workers: options.Workers = DEFAULT_WORKERS,
    node_size: options.NodeSize = None,
    schedule: Annotated[
        str | None,
        options.schedule("Show the phases of this schedule, and plan its first one."),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Also list what this worker owns.")] = None,
    small: options.FullOrSmall = None,
    inputs: options.Inputs = None,
    overrides: options.Overrides = None,
    json: Annotated[
        str | None, typer.Option(metavar="PATH|-", help="Write the plan as JSON, as Plan.from_json reads it.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Plan who owns what, and print what each worker pays in memory, FLOPs and traffic. Needs no weights.

    [bold]Examples[/bold]
      sdp-compile plan transformers:gpt2 --workers 8
      sdp-compile plan torchvision:resnet50 --policy block --workers 16
      sdp-compile plan transformers:gpt2 --set n_layer=6 --rank 3
      sdp-compile plan path/to/file.py:factory --json plan.json
      sdp-compile plan ./my-model/ --coverage 0.25
      sdp-compile plan transformers:gpt2 --schedule growing
      sdp-compile plan transformers:llama --workers 64 --node-size 8

    Exit codes: 0 planned; 1 unexpected failure; 2 wrong arguments, or a
    model, policy or file that cannot be used; 130 stopped by Ctrl-C.
    """
    from sdp_compile.cli.plan import PlanSettings, run
    from sdp_compile.cli.subject import SubjectWords

    with clean_errors(debug):
        words = SubjectWords(
            model,
            policy,
            coverage,
            masking and masking.value,
            workers,
            tuple(inputs or ()),
            tuple(overrides or ()),
            options.size_of(small),
            node_size=node_size,
            schedule=schedule,
        )
        run(PlanSettings(words, rank, json))
