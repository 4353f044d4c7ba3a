"""The hooks of a gradient engine."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sdp_compile.runtime.gradients.engine import engine_of
from sdp_compile.runtime.gradients.hooks import Hook, Hooks


class Listener:
    def __init__(self) -> None:
        self.told: list[Sequence[int]] = []

    def on_gradient(self, slots: Sequence[int], name: str | None = None) -> None:
        self.told.append(slots)


def test_each_accumulated_gradient_is_told_of() -> None:
    listener, hooks = Listener(), Hooks()
    first, second = (nn.Parameter(torch.ones(1)) for _ in range(2))
    frozen = nn.Parameter(torch.ones(1), requires_grad=False)
    computed: Any = first * 2
    hooks.attach(listener, {frozen: [7], computed: [8], first: [0], second: [1, 2]})
    second.sum().backward()
    first.sum().backward()
    assert listener.told == [[1, 2], [0]]
    hooks.attach(listener, {second: [5]})
    (first + second).sum().backward()
    assert listener.told == [[1, 2], [0], [5]]


def test_a_hook_does_not_keep_its_engine_alive() -> None:
    listener, parameter = Listener(), nn.Parameter(torch.ones(1))
    hook = Hook(listener, [0])
    assert hook.engine is listener
    Hooks().attach(listener, {parameter: [0]})
    assert engine_of(parameter) is None  # a listener that is not an engine
    del listener
    gc.collect()
    parameter.sum().backward()
    assert hook.engine is None and engine_of(parameter) is None
