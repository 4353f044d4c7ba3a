"""The hooks that tell a gradient engine of its parameters' gradients."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sdp_compile.runtime.gradients.owned import mark


class Listener(Protocol):
    """What is told of completed gradients: a gradient engine."""

    def on_gradient(self, slots: Sequence[int], name: str | None = None) -> None:
        """Called for each parameter whose gradient a backward has completed.

        Args:
            slots: The positions of the parameter's buckets.
            name: The parameter's name in the full model; None if it has no part in the plan.
        """


class Watcher(Protocol):
    """What sees gradients before they are accumulated: a gradient engine."""

    def on_arrival(self, parameter: Tensor, gradient: Tensor) -> Tensor | None:
        """Called with each gradient before it is accumulated. Returns another one in its place, or None."""


class Hook:
    """The hook of one parameter; it does not keep the engine alive.

    Args:
        engine: What is told of the parameter's gradient.
        slots: The positions of the parameter's buckets.
        name: The parameter's name in the full model; None if it has no part in the plan.
    """

    def __init__(self, engine: Listener, slots: Sequence[int], name: str | None = None) -> None:
        self.engine_ref = weakref.ref(engine)
        self._slots, self._name = slots, name

    @property
    def engine(self) -> Listener | None:
        return self.engine_ref()

    def __call__(self, parameter: Tensor) -> None:
        engine = self.engine_ref()
        if engine is not None:
            self.mark(parameter)
            engine.on_gradient(self._slots, self._name)

    def mark(self, parameter: Tensor) -> None:
        """Tells the parameter's gradient to which parameter of the full model it belongs."""
        if self._name is not None:
            mark(parameter.grad, self._name, self.engine_ref)


class ArrivalHook:
    """Shows one parameter's gradients to an engine before they are accumulated; it keeps neither alive.

    Args:
        watcher: The engine.
        parameter: The parameter.
    """

    def __init__(self, watcher: Watcher, parameter: Tensor) -> None:
        self._watcher, self._parameter = weakref.ref(watcher), weakref.ref(parameter)

    def __call__(self, gradient: Tensor) -> Tensor | None:
        watcher, parameter = self._watcher(), self._parameter()
        return None if watcher is None or parameter is None else watcher.on_arrival(parameter, gradient)


class Hooks:
    """All hooks of one gradient engine."""

    def __init__(self) -> None:
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._hooked: list[tuple[nn.Parameter, Hook]] = []

    def attach(
        self,
        engine: Listener,
        slots: Mapping[nn.Parameter, Sequence[int]],
        names: Mapping[nn.Parameter, str] | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        """Hooks parameters in place of those hooked before.

        Args:
            engine: What is told of their gradients.
            slots: The parameters, each with the positions of its buckets.
            names: The names of the parameters in the full model.
            watcher: What sees their gradients before they are accumulated.
        """
        for handle in self._handles:
            handle.remove()
        self._hooked = [
            (parameter, Hook(engine, positions, (names or {}).get(parameter)))
            for parameter, positions in slots.items()
            if parameter.is_leaf and parameter.requires_grad
        ]
        self._handles = [parameter.register_post_accumulate_grad_hook(hook) for parameter, hook in self._hooked]
        if watcher is not None:
            self._handles += [one.register_hook(ArrivalHook(watcher, one)) for one, _ in self._hooked]

    def mark(self) -> None:
        """Tells all gradients to which parameters they belong, also those that no backward has accumulated."""
        for parameter, hook in self._hooked:
            hook.mark(parameter)
