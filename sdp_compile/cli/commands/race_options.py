"""Options of ``bench`` and ``simulate``: who takes part, on what, and how it is measured."""

from __future__ import annotations

from typing import Annotated

import typer

Workers = Annotated[int, typer.Option(min=2, help="Number of workers.")]
Batch = Annotated[
    int | None, typer.Option(min=1, help="Samples per worker. Default: 4, or the batch of MODEL's inputs.")
]
Variants = Annotated[
    str | None, typer.Option(metavar="NAMES", help="Variants to include, such as 'ddp,fsdp2,sdp-*'. Default: all.")
]
BucketBytes = Annotated[
    int | None,
    typer.Option(
        min=1, help="Bytes of a gradient bucket, DDP's too: compiled, at least 1 MiB. Default: each library's own."
    ),
]
Rounds = Annotated[int, typer.Option(min=1, help="Number of measured turns of each variant.")]
Steps = Annotated[int, typer.Option(min=1, help="Number of timed steps per turn.")]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds that a variant may take to start, or for one turn.")]


def names_of(variants: str | None) -> tuple[str, ...]:
    """Returns the names that ``--variants`` lists."""
    return tuple(name.strip() for name in variants.split(",")) if variants else ()
