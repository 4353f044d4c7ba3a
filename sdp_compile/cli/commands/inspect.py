"""The command ``inspect``."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from sdp_compile.cli import options
from sdp_compile.cli.clean_errors import clean_errors
from sdp_compile.command_words import DEFAULT_WORKERS


class ViewName(str, Enum):
    """What to look at."""

    structure = "structure"
    owners = "owners"
    graph = "graph"
    diff = "diff"
    cost = "cost"
    phases = "phases"


class Mode(str, Enum):
    """Which of a model's two graphs."""

    train = "train"
    eval = "eval"


class LoweringName(str, Enum):
    """How a worker's program holds its parameters."""

    sliced = "sliced"
    masked = "masked"


def inspect(
    view: Annotated[ViewName, typer.Argument(help="View to show.", show_default=False)],
    model: options.Model,
    policy: options.Policy = "auto",
    coverage: options.Coverage = None,
    masking: options.Masking = None,
    passes: options.Passes = None,
    workers: options.Workers = DEFAULT_WORKERS,
    node_size: options.NodeSize = None,
    schedule: Annotated[str | None, options.schedule("phases: show this schedule.")] = None,
    rank: Annotated[int, typer.Option(min=0, help="graph, diff: show this worker's graph.")] = 0,
    mode: Annotated[Mode | None, typer.Option(help="graph, diff: show this mode's graph. Default: train.")] = None,
    lowering: Annotated[
        LoweringName | None, typer.Option(help="graph, diff: show this lowering. Default: sliced.")
    ] = None,
    module: Annotated[
        str | None, typer.Option(metavar="GLOB", help="graph, diff: show only modules such as 'transformer.h.0*'.")
    ] = None,
    pass_name: Annotated[
        str | None, typer.Option("--pass", metavar="NAME", help="diff: show only what this pass changes.")
    ] = None,
    side_by_side: Annotated[bool, typer.Option("--side-by-side", help="diff: show two columns.")] = False,
    unfold: Annotated[bool, typer.Option("--all", help="Write out layers that repeat an earlier one.")] = False,
    small: options.FullOrSmall = None,
    inputs: options.Inputs = None,
    overrides: options.Overrides = None,
    json: options.Json = None,
    svg: Annotated[str | None, typer.Option(metavar="FILE", help="Write the view as an SVG picture.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write the view as HTML.")] = None,
    dot: Annotated[
        str | None, typer.Option(metavar="FILE", help="graph, structure: write the graph for Graphviz.")
    ] = None,
    graph_json: Annotated[
        str | None, typer.Option(metavar="FILE", help="graph, structure: write it as networkx node-link JSON.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Show a model's structure, who owns what, or how a worker's graph is rewritten. Needs no weights.

    [bold]Views[/bold]
      structure  the module tree: what is cut, could be cut, never is, and why
      owners     a heat map of families and workers, and who owns which units
      graph      a worker's rewritten graph as code, with your source lines
      diff       what each pass changed in it, and nothing else
      cost       memory, FLOPs and traffic of each worker against dense
      phases     the same for each phase of a schedule, and what moves

    [bold]Examples[/bold]
      sdp-compile inspect structure torchvision:resnet18 --policy block
      sdp-compile inspect owners transformers:llama --workers 1000
      sdp-compile inspect diff transformers:gpt2 --rank 1 --side-by-side
      sdp-compile inspect graph path/to/file.py:factory --module 'layers.0*'
      sdp-compile inspect cost transformers:gpt2 --svg cost.svg --json -
      sdp-compile inspect phases transformers:gpt2 --schedule growing

    Exit codes: 0 shown; 1 unexpected failure; 2 wrong arguments, or a
    model, policy or file that cannot be used; 130 stopped by Ctrl-C.
    """
    from sdp_compile.cli.inspect import Exports, InspectSettings, run
    from sdp_compile.cli.subject import SubjectWords

    with clean_errors(debug):
        settings = InspectSettings(
            view=view.value,
            words=SubjectWords(
                model,
                policy,
                coverage,
                masking and masking.value,
                workers,
                tuple(inputs or ()),
                tuple(overrides or ()),
                options.size_of(small),
                passes,
                node_size,
                schedule,
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
