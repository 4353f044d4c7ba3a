"""The command line ``sdp-compile``: options in, clean messages out."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from sdp_compile._version import __version__
from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.cli.comparing import bench, simulate
from sdp_compile.cli.inspect import LoweringName, Mode, ViewName
from sdp_compile.errors import PolicyError
from sdp_compile.train.settings import DEFAULT_WORKERS, TrainSettings, joined_workers

app = typer.Typer(
    name="sdp-compile",
    no_args_is_help=True,
    rich_markup_mode="rich",
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
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Subnetwork Data Parallel training of any PyTorch model.

    [bold]Examples[/bold]
      sdp-compile doctor
      sdp-compile train
      sdp-compile check torchvision:resnet18 --input 2x3x64x64
      sdp-compile inspect diff transformers:gpt2
      sdp-compile report transformers:gpt2 --workers 8 -o gpt2.html
      sdp-compile bench --no-compile
      sdp-compile simulate --workers 64 --nodes 8
      sdp-compile COMMAND --help

    [bold]Exit codes[/bold]
      0    done
      1    failed: a worker ended, a check found a difference, a machine
           lacks something, or an error that was not expected (--debug)
      2    refused: wrong arguments, or a model, policy or file that cannot
           be used as it is; the message says what to do
      130  stopped by Ctrl-C
    """


@app.command()
def train(
    workers: Annotated[
        int | None, typer.Option(min=1, help=f"Number of local workers. Default: {DEFAULT_WORKERS}, or torchrun's.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = TrainSettings.steps,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.toml",
            help="Who owns what. Default: neuron.",
            autocompletion=options.complete_policy,
        ),
    ] = None,
    coverage: options.Coverage = None,
    masking: options.Masking = None,
    level: Annotated[Level | None, typer.Option(help="Short for the policy of that name.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial weights and of the batches.")] = 0,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Train dense data-parallel (DDP) too, and compare.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Folder for model.safetensors.")] = Path(TrainSettings.output),
    json: Annotated[Path | None, typer.Option(help="The report's file. Default: report.json in --output.")] = None,
    debug: options.Debug = False,
) -> None:
    """Compile a small GPT into subnetworks and train it on the source text of Python's standard library.

    [bold]Examples[/bold]
      sdp-compile train
      sdp-compile train --workers 2 --steps 50 --baseline
      sdp-compile train --policy block --coverage 0.25 --workers 8
      sdp-compile train --masking backward
      sdp-compile train --policy my_policy.toml --output runs/one

    Under torchrun it joins the given process group instead of starting
    workers of its own. Exit codes: 0 trained; 1 a worker failed; 2 wrong
    arguments or a policy that does not fit; 130 stopped by Ctrl-C.
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
            masking=masking and masking.value,
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
    model: options.OptionalModel = None,
    zoo: Annotated[
        str | None, typer.Option(metavar="LIBRARY", help="Check every model of torchvision, timm or transformers.")
    ] = None,
    policy: options.Policy = "auto",
    coverage: options.Coverage = None,
    masking: options.Masking = None,
    workers: options.Workers = DEFAULT_WORKERS,
    rank: Annotated[list[int] | None, typer.Option(help="A worker to compare; repeatable. Default: all.")] = None,
    inputs: options.Inputs = None,
    overrides: options.Overrides = None,
    limit: Annotated[int | None, typer.Option(min=1, help="With --zoo: only the first models.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random weights.")] = 0,
    json: Annotated[str | None, typer.Option(metavar="PATH|-", help="Write everything found as JSON.")] = None,
    debug: options.Debug = False,
) -> None:
    """Capture, partition and verify a model on this machine: is each worker's subnetwork exactly the original's?

    [bold]Examples[/bold]
      sdp-compile check torchvision:resnet18 --input 2x3x64x64
      sdp-compile check transformers:gpt2 --set n_layer=2 --policy neuron
      sdp-compile check path/to/file.py:factory --workers 8 --json -
      sdp-compile check --zoo timm --limit 20

    Exit codes: 0 exact; 1 not exact, or failed unexpectedly; 2 wrong
    arguments, a refusal that says what to do, or a model that could be
    planned but not compared (too large, or random by nature). With --zoo
    0 means that every model is exact or has nothing to partition.
    """
    from sdp_compile.cli.check import CheckSettings, run

    with clean_errors(debug):
        settings = CheckSettings(
            model=model,
            zoo=zoo,
            policy=policy,
            coverage=coverage,
            masking=masking and masking.value,
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


@app.command()
def inspect(
    view: Annotated[ViewName, typer.Argument(help="What to look at.", show_default=False)],
    model: options.Model,
    policy: options.Policy = "auto",
    coverage: options.Coverage = None,
    masking: options.Masking = None,
    workers: options.Workers = DEFAULT_WORKERS,
    rank: Annotated[int, typer.Option(min=0, help="graph, diff: the worker whose graph is shown.")] = 0,
    mode: Annotated[Mode | None, typer.Option(help="graph, diff: which graph. Default: train.")] = None,
    lowering: Annotated[LoweringName | None, typer.Option(help="graph, diff. Default: sliced.")] = None,
    module: Annotated[
        str | None, typer.Option(metavar="GLOB", help="graph, diff: only modules such as 'transformer.h.0*'.")
    ] = None,
    pass_name: Annotated[
        str | None, typer.Option("--pass", metavar="NAME", help="diff: before and after this pass alone.")
    ] = None,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="diff: two columns.")] = False,
    unfold: Annotated[bool, typer.Option("--all", help="Write out layers that repeat an earlier one.")] = False,
    inputs: options.Inputs = None,
    overrides: options.Overrides = None,
    json: Annotated[str | None, typer.Option(metavar="PATH|-", help="Write the view's data as JSON.")] = None,
    svg: Annotated[str | None, typer.Option(metavar="FILE", help="Write a picture of what is shown.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write what is shown as HTML.")] = None,
    dot: Annotated[
        str | None, typer.Option(metavar="FILE", help="graph, structure: write the graph for Graphviz.")
    ] = None,
    graph_json: Annotated[
        str | None, typer.Option(metavar="FILE", help="graph, structure: write it as networkx node-link JSON.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Look at what is found in a model, who owns what, and how a worker's graph is rewritten.

    [bold]Views[/bold]
      structure  the module tree: what is cut, could be cut, never is, and why
      owners     a heat map of families and workers, and who owns which units
      graph      a worker's rewritten graph as code, with your source lines
      diff       what each pass changed in it, and nothing else
      cost       memory, FLOPs and traffic of each worker against dense

    [bold]Examples[/bold]
      sdp-compile inspect structure torchvision:resnet18 --policy block
      sdp-compile inspect owners transformers:llama --workers 1000
      sdp-compile inspect diff transformers:gpt2 --rank 1 --side-by-side
      sdp-compile inspect graph path/to/file.py:factory --module 'layers.0*'
      sdp-compile inspect cost transformers:gpt2 --svg cost.svg --json -

    Exit codes: 0 shown; 1 failed unexpectedly; 2 wrong arguments, or a
    model, policy or file that cannot be used; 130 stopped by Ctrl-C.
    """
    from sdp_compile.cli.inspect import Exports, InspectSettings, run
    from sdp_compile.cli.subject import SubjectWords

    with clean_errors(debug):
        settings = InspectSettings(
            view=view.value,
            words=SubjectWords(
                model, policy, coverage, masking and masking.value, workers, tuple(inputs or ()), tuple(overrides or ())
            ),
            rank=rank,
            mode=mode and mode.value,
            lowering=lowering and lowering.value,
            module=module,
            pass_name=pass_name,
            side_by_side=side_by_side,
            unfold=unfold,
            exports=Exports(json, svg, html, dot, graph_json),
        )
        run(settings)


@app.command()
def report(
    model: options.Model,
    policy: options.Policy = "auto",
    coverage: options.Coverage = None,
    masking: options.Masking = None,
    workers: options.Workers = DEFAULT_WORKERS,
    rank: Annotated[int, typer.Option(min=0, help="The worker whose rewritten graph is shown.")] = 0,
    inputs: options.Inputs = None,
    overrides: options.Overrides = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page's file.")] = Path("report.html"),
    debug: options.Debug = False,
) -> None:
    """Write a page that shows what is captured, cut and rewritten: one HTML file that needs no network.

    [bold]Examples[/bold]
      sdp-compile report transformers:gpt2 --workers 8 -o gpt2.html
      sdp-compile report torchvision:resnet18 --input 2x3x64x64 --policy block
      sdp-compile report path/to/file.py:factory --policy my_policy.toml

    Exit codes: 0 written; 1 failed unexpectedly; 2 wrong arguments, or a
    model, policy or file that cannot be used; 130 stopped by Ctrl-C.
    """
    from sdp_compile.cli.report import run
    from sdp_compile.cli.subject import SubjectWords

    with clean_errors(debug):
        words = SubjectWords(
            model, policy, coverage, masking and masking.value, workers, tuple(inputs or ()), tuple(overrides or ())
        )
        run(words, output, rank)


app.command()(bench)
app.command()(simulate)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print everything found as JSON.")] = False,
    debug: options.Debug = False,
) -> None:
    """Tell what this machine has, what training would use, and what is missing.

    [bold]Examples[/bold]
      sdp-compile doctor
      sdp-compile doctor --json

    Exit codes: 0 this machine can train; 1 something that training needs
    is missing or broken. Warnings and notes do not change the code.
    """
    from sdp_compile.cli.doctor import run

    with clean_errors(debug):
        code = run(json)
    raise typer.Exit(code)


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="sdp-compile")


if __name__ == "__main__":
    main()
