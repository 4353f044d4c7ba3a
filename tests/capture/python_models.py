"""Models whose Python code does more than compute: the kinds that a graph would silently lose."""

from __future__ import annotations

import functools
import itertools
import os
import random
import time
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

SCALE = 2.0
COLLECTED: list[torch.Tensor] = []
COUNTS = {"calls": 0}
STEPS = 0
SETTINGS = SimpleNamespace(calls=0)


class Small(nn.Module):
    """Two layers; a subclass does something with what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.between(self.first(x)))

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h


class Counter(Small):
    calls = 0

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return h / self.calls


class ChildCounter(Small):
    def __init__(self) -> None:
        super().__init__()
        self.last.calls = 0

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.last.calls = self.last.calls + 1
        return torch.tanh(h / self.last.calls)


class ClassCounter(Small):
    calls: ClassVar[list[int]] = [0]

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.calls[0] += 1
        return h


class ClassNumber(Small):
    calls = 0

    def between(self, h: torch.Tensor) -> torch.Tensor:
        ClassNumber.calls += 1
        return h * self.calls


class History(Small):
    def __init__(self) -> None:
        super().__init__()
        self.history: deque[int] = deque(maxlen=4)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.history.append(h.shape[0])
        return h


class Table(Small):
    def __init__(self) -> None:
        super().__init__()
        self.table: dict[str, int] = {}

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.table["seen"] = self.table.get("seen", 0) + 1
        return h


class Stepper(Small):
    def __init__(self) -> None:
        super().__init__()
        self.steps = itertools.count()

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * next(self.steps)


class OwnRandom(Small):
    def __init__(self) -> None:
        super().__init__()
        self.random = random.Random(0)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h if self.random.random() > 0.5 else h * 2


class LayerDrop(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h.relu() if random.random() > 0.5 else h


class Shuffled(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        order = [0, 1]
        random.shuffle(order)
        return h * order[0]


class NumpyNoise(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h + float(np.random.normal())


class Clock(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * (time.time() % 2)


class Collecting(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        COLLECTED.append(h)
        return h


class GlobalTable(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        COUNTS["calls"] += 1
        return h


class GlobalNumber(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        global STEPS
        STEPS += 1
        return h


class GlobalObject(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        SETTINGS.calls += 1
        return h


def hooked(collect: Callable[[Any], object]) -> nn.Module:
    """A model with a forward hook that gives the output of its activation to ``collect``."""
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))
    model[1].register_forward_hook(lambda _module, _inputs, output: collect(output))
    return model


class CreatesLayer(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "extra"):
            self.extra = nn.Linear(16, 16)
        out: torch.Tensor = self.extra(h)
        return out


class CreatesParameter(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        if "scale" not in self._parameters:
            self.scale = nn.Parameter(torch.ones(h.shape[-1]))
        return h * self.scale


class Carried(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        mean = h.mean(0)
        self.states = [mean] if not hasattr(self, "states") else [self.states[0] + mean]
        return h + self.states[0]


class ReadsGlobal(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * SCALE


class ReadsEnvironment(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * float(os.environ.get("SDP_TEST_SCALE", "1"))


class TypeNumber(Small):
    total = 0

    def between(self, h: torch.Tensor) -> torch.Tensor:
        type(self).total += 1
        return h


def remembering(h: torch.Tensor, seen: list[int] = []) -> torch.Tensor:  # noqa: B006
    seen.append(h.shape[0])
    return h * len(seen)


class Default(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return remembering(h)


class Freezing(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.first.requires_grad_(not self.training)
        return h


class Adding(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        if "extra" not in self._modules:
            self.add_module("extra", nn.Linear(16, 16))
        return h


class Cached(Small):
    @functools.cached_property
    def doubled(self) -> torch.Tensor:
        return self.last.weight * 2

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * self.doubled.sum()


class ClassCache(Small):
    """Keeps what its first call computed in its class."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        if not hasattr(type(self), "scale"):
            type(self).scale = h.detach().mean()
        return h * type(self).scale


class Lazy(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "ramp"):
            self.ramp = torch.linspace(0, 1, 16)
        return h * self.ramp


class OtherMode(Small):
    """Evaluates with what training has left."""

    def __init__(self) -> None:
        super().__init__()
        self.size: int | None = None

    def between(self, h: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.size = len(h)
        elif self.size is not None:
            h = h / self.size
        return h


class OtherModeTensor(Small):
    def __init__(self) -> None:
        super().__init__()
        self.mean: torch.Tensor | None = None

    def between(self, h: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.mean = h.detach().mean()
        return h if self.training or self.mean is None else h - self.mean


class Telling(Small):
    """Leaves numbers and text for whoever looks."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.shape, self.loss, self.how = 0, (0, 0), None, ""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.rows, self.shape = len(h), (h.shape[0], 2 * h.shape[1])
        self.loss: torch.Tensor | None = h.pow(2).mean() if self.training else None
        self.how = "trained" if self.training else "evaluated"
        return h / self.rows


class Memo(Small):
    """Keeps a mask for each size in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[int, torch.Tensor] = {}

    def between(self, h: torch.Tensor) -> torch.Tensor:
        if h.shape[1] not in self.masks:
            self.masks[h.shape[1]] = torch.arange(h.shape[1], device=h.device, dtype=h.dtype).cos()
        return h * self.masks[h.shape[1]]


class Stored(Small):
    """Gives its activation to whoever looks, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, torch.Tensor] = {}

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.stored["h"] = h
        return h


class Local(Small):
    """Collects in a list of its own call, which is new every time."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        kept: list[torch.Tensor] = []

        def collect(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            kept.append(output)

        handle = self.last.register_forward_hook(collect)
        self.last(h)
        handle.remove()
        return h * kept[0].sum()


class Tempered(Small):
    def __init__(self) -> None:
        super().__init__()
        self.temperature = 1.0
        self.first.gain = 1

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h.relu() / self.temperature * self.first.gain


class Assigning(Small):
    """Assigns tensors for the trainer: alone, in a list, in a child, in a dictionary."""

    auxiliary: torch.Tensor | None = None

    def between(self, h: torch.Tensor) -> torch.Tensor:
        self.auxiliary = h.pow(2).mean()
        self.parts = [h.sum(), h.mean(0)]
        self.last.seen = {"norm": h.norm()}
        return h.relu()


class Memory(Small):
    """Two plain tensors, equal at first, that forward writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = torch.zeros(4, 16, dtype=torch.float64), torch.zeros(4, 16, dtype=torch.float64)

    def between(self, h: torch.Tensor) -> torch.Tensor:
        h = h.tanh() + self.one.clone() - self.other.clone() / 2
        self.one.copy_(h.detach())
        self.other.add_(h.detach() * 2)
        return h


class Frozen(Small):
    """Gates with the detached weight of its own layer."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = self.first.weight.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.first(x).relu() * nn.functional.linear(x, self.frozen).sigmoid())
        return out
