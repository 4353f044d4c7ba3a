"""Options that several commands share, so that they read and mean the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from sdp_compile.models.configuration import Size
from sdp_compile.models.words import LIBRARIES


def complete_model(incomplete: str) -> Iterator[str]:
    """Yields how MODEL can begin: a library, a folder or a file. A library's names would need its import."""
    yield from (f"{library}:" for library in LIBRARIES if library.startswith(incomplete))
    yield from _paths(incomplete, {".py": ":", ".json": ""})


def complete_policy(incomplete: str) -> Iterator[str]:
    """Yields the names of the built-in policies, folders and TOML files."""
    yield from (name for name in ("neuron", "block", "auto") if name.startswith(incomplete))
    yield from _paths(incomplete, {".toml": ""})


def complete_schedule(incomplete: str) -> Iterator[str]:
    """Yields the names of the schedules that come with the package, folders and TOML files."""
    folder = Path(__file__).parent.parent / "policies" / "schedules"
    yield from (path.stem for path in sorted(folder.glob("*.toml")) if path.stem.startswith(incomplete))
    yield from _paths(incomplete, {".toml": ""})


def complete_passes(incomplete: str) -> Iterator[str]:
    """Yields folders and TOML files. Names of passes would need torch."""
    yield from _paths(incomplete, {".toml": ""})


def _paths(incomplete: str, endings: dict[str, str]) -> Iterator[str]:
    """Yields folders, and files with the given suffixes, each followed by what MODEL needs after it."""
    folder, _, start = incomplete.rpartition("/")
    where = Path(f"{folder}/") if incomplete.startswith("/") or folder else Path()
    try:
        found = sorted(path for path in where.iterdir() if path.name.startswith(start))
    except OSError:
        return
    for path in found:
        if path.is_dir() and not path.name.startswith((".", "__")):
            yield f"{incomplete[: len(incomplete) - len(start)]}{path.name}/"
        elif path.suffix in endings:
            yield f"{incomplete[: len(incomplete) - len(start)]}{path.name}{endings[path.suffix]}"


_MODEL = typer.Argument(
    help="torchvision:NAME, timm:NAME, transformers:TYPE, transformers:ORG/NAME from the Hugging Face hub, a folder "
    "with a transformers config.json, package.module:factory or path/to/file.py:factory. A factory takes no arguments "
    "and returns a model, or a model and its example inputs.",
    show_default=False,
    autocompletion=complete_model,
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]

_SIZE = "Take the small or the published configuration of a named model."
FullOrSmall = Annotated[bool | None, typer.Option("--small/--full", help=f"{_SIZE} Default: published.")]
SmallOrFull = Annotated[bool | None, typer.Option("--small/--full", help=f"{_SIZE} Default: small.")]


def size_of(small: bool | None) -> Size | None:
    """Returns the size that ``--small`` or ``--full`` names; None without either."""
    return None if small is None else "small" if small else "full"


Policy = Annotated[
    str,
    typer.Option(metavar="NAME|FILE.toml", help="Policy that decides who owns what.", autocompletion=complete_policy),
]


def schedule(text: str) -> Any:
    """Returns the option ``--schedule`` with a command's own help."""
    return typer.Option(metavar="NAME|FILE.toml", help=text, autocompletion=complete_schedule)


Coverage = Annotated[
    float | None, typer.Option(help="Share of the workers that own each unit. Default: 0.5, or the file's.")
]
Replicas = Annotated[
    int | None, typer.Option(min=1, help="Number of workers that own each unit, instead of --coverage.")
]


NodeSize = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Number of workers of each node (machine); what they own, and how gradients travel, follows from it. "
        "Default: the file's, or one node with all workers; under torchrun, its local workers.",
    ),
]


class MaskingName(str, Enum):
    """What a worker computes with."""

    forward = "forward"
    backward = "backward"


Masking = Annotated[
    MaskingName | None,
    typer.Option(
        help="Compute with the worker's subnetwork (forward), or with the full model and train only its part "
        "(backward). Default: forward, or the file's."
    ),
]
Passes = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[,NAME...]|FILE.toml",
        help="Add registered passes to the default pipeline, or read a pipeline from a file.",
        autocompletion=complete_passes,
    ),
]
Workers = Annotated[int, typer.Option(min=1, help="Number of workers to plan for.")]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="Example input, such as 2x3x64x64 or ids=2x16:int64; repeatable.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a field of the transformers configuration; repeatable."),
]
ResetLost = Annotated[
    bool,
    typer.Option(
        "--reset-lost-optimizer-state",
        help="Go on where parts of the optimizer's state are lost: their parameters begin without state.",
    ),
]
Json = Annotated[str | None, typer.Option(metavar="PATH|-", help="Write the results as JSON; - is standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
