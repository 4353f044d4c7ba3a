"""Folds neighbours that differ in their names only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Repeating(Protocol):
    """An item of a view; ``like`` names the earlier item that it repeats, if any."""

    @property
    def like(self) -> str | None: ...


Item = TypeVar("Item", bound=Repeating)


@dataclass(frozen=True)
class Alike(Generic[Item]):
    """Neighbours that repeat the item ``like``, or a single item that repeats none."""

    like: str | None
    items: list[Item] = field(default_factory=list)


def neighbours(items: Iterable[Item]) -> list[Alike[Item]]:
    """Groups consecutive items that repeat the same earlier item, in their order."""
    groups: list[Alike[Item]] = []
    for item in items:
        if item.like is None or not groups or groups[-1].like != item.like:
            groups.append(Alike(item.like))
        groups[-1].items.append(item)
    return groups
