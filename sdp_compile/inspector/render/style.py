"""Colours and words that all views share. Names from the user's model go into `Text`, never into markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from rich.text import Text

from sdp_compile.inspector.plain import ranges
from sdp_compile.inspector.render.lines import visible


class _Repeating(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def like(self) -> str | None: ...


Item = TypeVar("Item", bound=_Repeating)

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
    "join": "join of owned parts and the rest",
    "size": "size arithmetic",
    "rewritten": "rewritten",
}
"""Names for the kinds of rows that passes make, in the order of the legend."""

GUTTER: Mapping[str, str] = {kind: "~" if kind == "rewritten" else "+" for kind in WORDS}
"""The sign in front of a row that a pass inserted (+) or changed (~), for terminals without colour."""


def heading(*parts: str) -> Text:
    """Renders the first line of a view."""
    return visible(Text(" · ".join(part for part in parts if part), style=HEADING))


def shape_text(full: Sequence[int] | None, local: Sequence[int] | None) -> Text:
    """Renders ``[2, 16, 144→72]``: the full model's sizes, and the worker's where they differ."""
    if full is None or local is None:
        return Text()
    if len(full) != len(local):
        return Text(f"{list(full)}→{list(local)}", style="green")
    text = Text("[", style=DIM)
    for number, (whole, part) in enumerate(zip(full, local, strict=True)):
        text.append(", " if number else "")
        text.append(f"{whole}" if whole == part else f"{whole}→{part}", style="" if whole == part else "not dim green")
    return text.append("]")


def counted(count: int, noun: str, plural: str = "") -> str:
    """Returns ``1 layer``, ``2 layers``."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def grouped_by_like(families: Iterable[Item]) -> list[list[Item]]:
    """Groups each family with those that it is like; the group with the most bytes comes first."""
    groups: dict[str, list[Item]] = {}
    for family in families:
        groups.setdefault(family.like or family.name, []).append(family)
    return sorted(groups.values(), key=lambda group: -sum(one.nbytes for one in group))


def times_text(count: int) -> str:
    """Returns ``  x 3``, to follow the name of the first of three alike items; empty for a single one."""
    return f"  x {count}" if count > 1 else ""


def owners_text(least: int, mean: float, most: int) -> str:
    """Returns ``2.00 owners per cut element``, with the range if it varies."""
    return f"{mean:.2f} owners per cut element" + (f" ({least} to {most})" if least != most else "")


def workers_text(workers: Sequence[int]) -> str:
    """Returns ``worker 3`` or ``workers 0, 8, ... 992 (125)``."""
    if len(workers) == 1:
        return f"worker {workers[0]}"
    return f"workers {ranges(workers)}" + (f" ({len(workers)})" if len(workers) > 2 else "")


def span(paths: Sequence[str]) -> str:
    """Returns the first and the last of several module paths: ``h.1 to h.11``."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1]}"
