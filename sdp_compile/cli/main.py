"""The command line ``sdp-compile``: assembles the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from sdp_compile._version import __version__
from sdp_compile.cli.commands.bench import bench
from sdp_compile.cli.commands.check import check
from sdp_compile.cli.commands.checkpoint import checkpoint
from sdp_compile.cli.commands.doctor import doctor
from sdp_compile.cli.commands.inspect import inspect
from sdp_compile.cli.commands.merge import merge
from sdp_compile.cli.commands.plan import plan
from sdp_compile.cli.commands.report import report
from sdp_compile.cli.commands.simulate import simulate
from sdp_compile.cli.commands.study import study
from sdp_compile.cli.commands.train import train

app = typer.Typer(
    name="sdp-compile",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
      sdp-compile plan transformers:gpt2 --workers 8
      sdp-compile check torchvision:resnet18 --input 2x3x64x64
      sdp-compile inspect diff transformers:gpt2
      sdp-compile report transformers:gpt2 --workers 8 -o gpt2.html
      sdp-compile bench --no-compile
      sdp-compile simulate --workers 64 --nodes 8
      sdp-compile study docs/studies/text.toml --jobs 2
      sdp-compile merge runs/one -o model.safetensors
      sdp-compile COMMAND --help

    [bold]Python[/bold]
      import sdp_compile as sdp
      model = sdp.compile(model, "neuron", example_inputs)

    [bold]Exit codes[/bold]
      0    success
      1    failure: a worker ended, a check found a difference, the machine
           lacks something, or an unexpected error (--debug shows where)
      2    refused: wrong arguments, or a model, policy or file that cannot
           be used; the message says what to do
      65   train stopped because owners differ, or gradients or values are
           infinite or NaN; nothing of that was saved
      75   train was given notice, saved a checkpoint and stopped
      130  stopped by Ctrl-C
    """


for command in (train, plan, check, inspect, report, bench, simulate, study, doctor, checkpoint, merge):
    app.command()(command)


def main() -> None:
    """Runs the command line."""
    app(prog_name="sdp-compile")


if __name__ == "__main__":
    main()
