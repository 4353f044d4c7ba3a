"""The hooks that tell a gradient engine of its parameters' gradients."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Listener(Protocol):
    """What is told of completed gradients: a gradient engine."""

    def on_gradient(self, slots: Sequence[int]) -> None:
        """Called for each parameter whose gradient a backward has completed, with the positions of its buckets."""


class Hook:
    """The hook of one parameter, which is in the buckets ``slots``; it does not keep the engine alive."""

    def __init__(self, engine: Listener, slots: Sequence[int]) -> None:
        self._engine = weakref.ref(engine)
        self._slots = slots

    @property
    def engine(self) -> Listener | None:
        return self._engine()

    def __call__(self, parameter: Tensor) -> None:
        engine = self._engine()
        if engine is not None:
            engine.on_gradient(self._slots)
