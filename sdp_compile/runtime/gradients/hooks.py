"""The hooks that tell a gradient engine of its parameters' gradients."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


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


class Hooks:
    """All hooks of one gradient engine."""

    def __init__(self) -> None:
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, engine: Listener, slots: Mapping[nn.Parameter, Sequence[int]]) -> None:
        """Hooks these parameters, each with the positions of its buckets, in place of those hooked before."""
        for handle in self._handles:
            handle.remove()
        self._handles = [
            parameter.register_post_accumulate_grad_hook(Hook(engine, positions))
            for parameter, positions in slots.items()
            if parameter.is_leaf and parameter.requires_grad
        ]
