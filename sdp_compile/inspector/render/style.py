"""The colours and words that all views share. What a user named is only ever put into a `Text`, never into markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text

from sdp_compile.inspector.plain import ranges
from sdp_compile.inspector.render.lines import visible

HEADING = "bold"
MODULE = "bold cyan"
DIM = "dim"

KINDS: Mapping[str, str] = {
    "input": "green",
    "output": "green",
    "state": "default",
    "compute": "default",
    "mask": "bold magenta",
    "sync": "bold blue",
    "rescale": "bold yellow",
    "drop": "bold red",
    "join": "bold magenta",
    "size": "bold cyan",
    "rewritten": "bold green",
}
"""The style of each kind of row."""

WORDS: Mapping[str, str] = {
    "mask": "mask",
    "sync": "all-reduce",
    "rescale": "rescale",
    "drop": "stand-in for a dropped branch",
    "join": "join of what is owned and the rest",
    "size": "size arithmetic",
    "rewritten": "rewritten",
}
"""What the kinds of row that passes make are called, in the order of a legend."""

GUTTER: Mapping[str, str] = {kind: "~" if kind == "rewritten" else "+" for kind in WORDS}
"""The mark before a row that a pass inserted or changed, for those who see no colours."""


def heading(*parts: str) -> Text:
    """The first line of a view."""
    return visible(Text(" · ".join(part for part in parts if part), style=HEADING))


def shape_text(full: Sequence[int] | None, mine: Sequence[int] | None) -> Text:
    """``[2, 16, 144→72]``: the full model's sizes, and the worker's where they differ."""
    if full is None or mine is None:
        return Text()
    if len(full) != len(mine):
        return Text(f"{list(full)}→{list(mine)}", style="green")
    text = Text("[", style=DIM)
    for number, (whole, part) in enumerate(zip(full, mine, strict=True)):
        text.append(", " if number else "")
        text.append(f"{whole}" if whole == part else f"{whole}→{part}", style="" if whole == part else "not dim green")
    return text.append("]")


def counted(count: int, noun: str, plural: str = "") -> str:
    """``1 layer``, ``2 layers``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def workers_text(workers: Sequence[int]) -> str:
    """``worker 3``; ``workers 0, 8, ... 992 (125)``."""
    if len(workers) == 1:
        return f"worker {workers[0]}"
    return f"workers {ranges(workers)}" + (f" ({len(workers)})" if len(workers) > 2 else "")


def span(paths: Sequence[str]) -> str:
    """The first and the last of several module paths: ``h.1 to h.11``."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1]}"
