"""Where a check is, and how long each of its stages took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stages:
    """Seconds by stage; ``current`` is the last stage entered."""

    def __init__(self) -> None:
        self.current = "arguments"
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """The time within counts for ``name``, added to what it took before."""
        self.current = name
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
