"""Neighbours that are alike in all but names, shown as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Repeating(Protocol):
    """What a view marks as a repetition: ``like`` names the earlier one that it repeats."""

    @property
    def like(self) -> str | None: ...


Item = TypeVar("Item", bound=Repeating)


@dataclass(frozen=True)
class Alike(Generic[Item]):
    """Neighbours that repeat the one that ``like`` names; a single one with ``like`` None is shown as it is."""

    like: str | None
    items: list[Item] = field(default_factory=list)


def neighbours(items: Iterable[Item]) -> list[Alike[Item]]:
    """The items in their order, repetitions of one earlier item that follow one another taken together."""
    found: list[Alike[Item]] = []
    for item in items:
        if item.like is None or not found or found[-1].like != item.like:
            found.append(Alike(item.like))
        found[-1].items.append(item)
    return found
