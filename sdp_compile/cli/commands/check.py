"""The command ``check``."""

from __future__ import annotations

from typing import Annotated

import typer

from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.command_words import DEFAULT_WORKERS


def check(
    model: options.OptionalModel = None,
    zoo: Annotated[
        str | None, typer.Option(metavar="LIBRARY", help="Check every model of torchvision, timm or transformers.")
    ] = None,
    policy: options.Policy = "auto",
    coverage: options.Coverage = None,
    masking: options.Masking = None,
    passes: options.Passes = None,
    workers: options.Workers = DEFAULT_WORKERS,
    node_size: options.NodeSize = None,
    rank: Annotated[list[int] | None, typer.Option(help="Worker to compare; repeatable. Default: all.")] = None,
    small: options.SmallOrFull = None,
    inputs: options.Inputs = None,
    overrides: options.Overrides = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --zoo: check only the first models.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed for the weights.")] = 0,
    json: options.Json = None,
    debug: options.Debug = False,
) -> None:
    """Verify on this machine that each worker's subnetwork computes exactly what the original model does.

    [bold]Examples[/bold]
      sdp-compile check torchvision:resnet18 --input 2x3x64x64
      sdp-compile check transformers:gpt2 --set n_layer=2 --policy neuron
      sdp-compile check path/to/file.py:factory --workers 8 --json -
      sdp-compile check --zoo timm --limit 20

    Named models are checked in a small configuration, because a check
    needs weights and compares in float64; --full takes the published one.
    Exit codes: 0 exact; 1 not exact, or an unexpected failure; 2 wrong
    arguments, a refusal that says what to do, or a model that was planned
    but cannot be compared (too large, or random by nature). With --zoo,
    0 means that every model is exact or has nothing to partition.
    """
    from sdp_compile.cli.check import run
    from sdp_compile.cli.check_settings import CheckSettings

    with clean_errors(debug):
        settings = CheckSettings(
            model=model,
            zoo=zoo,
            policy=policy,
            coverage=coverage,
            masking=masking and masking.value,
            node_size=node_size,
            passes=passes,
            workers=workers,
            ranks=tuple(rank or ()),
            inputs=tuple(inputs or ()),
            overrides=tuple(overrides or ()),
            size=options.size_of(small),
            limit=limit,
            seed=seed,
            json_path=json,
        )
        code = run(settings, debug)
    raise typer.Exit(code)
