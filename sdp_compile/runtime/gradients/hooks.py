"""The hooks that tell a gradient engine of its parameters' gradients."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from sdp_compile.runtime.gradients.engine import GradientEngine


class Hook:
    """The hook of one parameter, which is in the buckets ``slots``; it does not keep the engine alive."""

    def __init__(self, engine: GradientEngine, slots: Sequence[int]) -> None:
        self._engine = weakref.ref(engine)
        self._slots = slots

    @property
    def engine(self) -> GradientEngine | None:
        return self._engine()

    def __call__(self, parameter: Tensor) -> None:
        engine = self._engine()
        if engine is not None:
            engine.on_gradient(self._slots)


def engine_of(parameter: Tensor) -> GradientEngine | None:
    """The engine that averages this parameter's gradient, if any."""
    hooks = getattr(parameter, "_post_accumulate_grad_hooks", None) or {}
    return next((hook.engine for hook in hooks.values() if isinstance(hook, Hook)), None)
