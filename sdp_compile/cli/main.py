"""The command line ``sdp-compile``: options in, clean messages out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sdp_compile._version import __version__
from sdp_compile.cli.launch import WorkerFailure
from sdp_compile.cli.settings import DEFAULT_WORKERS, TrainSettings, joined_workers
from sdp_compile.errors import PolicyError, SDPError

app = typer.Typer(
    name="sdp-compile",
    help="Subnetwork Data Parallel training of any PyTorch model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Level(str, Enum):
    """What is owned: neurons (axes), residual blocks, or whatever suits the model."""

    neuron = "neuron"
    block = "block"
    auto = "auto"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sdp-compile {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Subnetwork Data Parallel training of any PyTorch model."""


@app.command()
def train(
    workers: Annotated[
        int | None, typer.Option(min=1, help=f"Number of local workers. Default: {DEFAULT_WORKERS}, or torchrun's.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = TrainSettings.steps,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME|FILE.toml", help="Who owns what. Default: neuron.")
    ] = None,
    coverage: Annotated[
        float | None, typer.Option(help="Share of the workers that own a unit. Default: 0.5, or the file's.")
    ] = None,
    level: Annotated[Level | None, typer.Option(help="Short for the policy of that name.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial weights and of the batches.")] = 0,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Train dense data-parallel (DDP) too, and compare.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for model.safetensors.")] = Path(TrainSettings.output),
    json: Annotated[Path | None, typer.Option(help="The report's file. Default: report.json in --output.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Compile a small GPT into subnetworks and train it on the source text of Python's standard library.

    Under torchrun the same command joins the given process group instead of starting workers of its own.
    """
    # Imported here, and torch only inside: --help and wrong options answer at once.
    from sdp_compile.cli.train import join
    from sdp_compile.cli.train import train as start

    with clean_errors(debug):
        if policy is not None and level is not None:
            raise PolicyError(f"--policy {policy} and --level {level.value} exclude each other: leave one of them out")
        joined = joined_workers(workers)
        settings = TrainSettings(
            workers=joined or workers or DEFAULT_WORKERS,
            steps=steps,
            policy=policy or (level.value if level else "neuron"),
            coverage=coverage,
            seed=seed,
            baseline=baseline,
            output=str(output),
            json_path=str(json) if json else None,
            debug=debug,
        )
        if joined:
            join(settings)
        else:
            start(settings)


@app.command()
def check(
    model: Annotated[
        str | None,
        typer.Argument(
            help="torchvision:NAME, timm:NAME, transformers:TYPE, package.module:factory or path/to/file.py:factory. "
            "A factory takes nothing and returns a model, or a model and its example inputs.",
            show_default=False,
        ),
    ] = None,
    zoo: Annotated[
        str | None, typer.Option(metavar="LIBRARY", help="Check every model of torchvision, timm or transformers.")
    ] = None,
    policy: Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="Who owns what.")] = "auto",
    coverage: Annotated[
        float | None, typer.Option(help="Share of the workers that own a unit. Default: 0.5, or the file's.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of workers to plan for.")] = DEFAULT_WORKERS,
    rank: Annotated[list[int] | None, typer.Option(help="A worker to compare; repeatable. Default: all.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="[NAME=]SHAPE[:DTYPE]",
            help="An example input such as 2x3x64x64 or ids=2x16:int64; repeatable.",
        ),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a transformers configuration; repeatable."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --zoo: only the first models.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random weights.")] = 0,
    json: Annotated[str | None, typer.Option(metavar="PATH|-", help="Write everything found as JSON.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Capture, partition and verify a model on this machine: is each worker's subnetwork exactly the original's?

    Exit codes: 0 exact; 1 not exact, or failed unexpectedly; 2 bad arguments, a refusal that says what to do, or a
    model that could be planned but not compared (too large, or random by nature). With --zoo 0 means that every
    model is exact or has nothing to partition.
    """
    from sdp_compile.cli.check import CheckSettings, run

    with clean_errors(debug):
        settings = CheckSettings(
            model=model,
            zoo=zoo,
            policy=policy,
            coverage=coverage,
            workers=workers,
            ranks=tuple(rank or ()),
            inputs=tuple(inputs or ()),
            overrides=tuple(overrides or ()),
            limit=limit,
            seed=seed,
            json_path=json,
        )
        code = run(settings, debug)
    raise typer.Exit(code)


@contextmanager
def clean_errors(debug: bool) -> Iterator[None]:
    """Turn errors into one message and an exit code: 2 for what the user can mend, 1 for the rest, 130 for Ctrl-C."""
    console = Console(stderr=True)
    try:
        yield
    except SDPError as error:
        if debug and isinstance(error, WorkerFailure):
            sys.stderr.write(error.details)
        elif debug:
            raise
        console.print("[bold red]Error:[/] ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        expected = error.expected if isinstance(error, WorkerFailure) else True
        raise typer.Exit(2 if expected else 1) from None
    except KeyboardInterrupt:
        console.show_cursor()
        console.print("Stopped; all workers have ended.")
        raise typer.Exit(130) from None


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
