"""What forward computes at a first call and keeps by a key for later ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kept:
    """One entry of a cache that a call fills.

    Attributes:
        where: The cache, in words.
        key: The key, as text.
        computed: A text that is equal for entries that are computed in the same way from the same.
        line: The line of the model that fills the cache.
        place: The path of the module and the name of its attribute; None if the cache is no attribute.
    """

    where: str
    key: str
    computed: str
    line: str = field(default="", compare=False)
    place: tuple[str, str] | None = None


class KeptEntries:
    """The entries that the calls of one compiled model have kept until now.

    Args:
        entries: Those from earlier.
    """

    def __init__(self, entries: Iterable[Kept] = ()) -> None:
        self._entries = {(entry.where, entry.key): entry for entry in entries}

    def all(self) -> tuple[Kept, ...]:
        """Returns the entries."""
        return tuple(self._entries.values())

    def differs(self, entries: Iterable[Kept]) -> Kept | None:
        """Returns the first entry under whose key something else was kept before, or None."""
        for entry in entries:
            before = self._entries.get((entry.where, entry.key))
            if before is not None and before.computed != entry.computed:
                return entry
        return None

    def add(self, entries: Iterable[Kept]) -> None:
        """Notes what a call keeps; what was kept before stays."""
        for entry in entries:
            self._entries.setdefault((entry.where, entry.key), entry)

    def forget(self, place: tuple[str, str]) -> None:
        """Notes that an attribute with a cache was assigned."""
        self._entries = {key: entry for key, entry in self._entries.items() if entry.place != place}
