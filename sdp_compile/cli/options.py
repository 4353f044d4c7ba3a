"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from sdp_compile.models.spec import LIBRARIES


def complete_model(incomplete: str) -> Iterator[str]:
    """What MODEL can begin with: a library, a folder or a Python file. Names in a library would need its import."""
    yield from (f"{library}:" for library in LIBRARIES if library.startswith(incomplete))
    yield from _paths(incomplete, ".py", ":")


def complete_policy(incomplete: str) -> Iterator[str]:
    """The names of the built-in policies, folders and TOML files."""
    yield from (name for name in ("neuron", "block", "auto") if name.startswith(incomplete))
    yield from _paths(incomplete, ".toml")


def _paths(incomplete: str, suffix: str, ending: str = "") -> Iterator[str]:
    folder, _, start = incomplete.rpartition("/")
    where = Path(f"{folder}/") if incomplete.startswith("/") or folder else Path()
    try:
        found = sorted(path for path in where.iterdir() if path.name.startswith(start))
    except OSError:
        return
    for path in found:
        if path.is_dir() and not path.name.startswith((".", "__")):
            yield f"{incomplete[: len(incomplete) - len(start)]}{path.name}/"
        elif path.suffix == suffix:
            yield f"{incomplete[: len(incomplete) - len(start)]}{path.name}{ending}"


_MODEL = typer.Argument(
    help="torchvision:NAME, timm:NAME, transformers:TYPE, package.module:factory or path/to/file.py:factory. "
    "A factory takes nothing and returns a model, or a model and its example inputs.",
    show_default=False,
    autocompletion=complete_model,
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]

Policy = Annotated[str, typer.Option(metavar="NAME|FILE.toml", help="Who owns what.", autocompletion=complete_policy)]
Coverage = Annotated[
    float | None, typer.Option(help="Share of the workers that own a unit. Default: 0.5, or the file's.")
]


class MaskingName(str, Enum):
    """What a worker computes with."""

    forward = "forward"
    backward = "backward"


Masking = Annotated[
    MaskingName | None,
    typer.Option(
        help="Whether a worker computes with its subnetwork, or with the full model and trains its part of it. "
        "Default: forward, or the file's."
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Number of workers to plan for.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="An example input such as 2x3x64x64 or ids=2x16:int64; repeatable.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a transformers configuration; repeatable."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
