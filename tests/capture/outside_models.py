"""Models that read variables outside of themselves, and how these change between calls."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import nn

SCALE = 2.0
STEPS = 2
TENSOR = torch.tensor(2.0)
TABLE = {"scale": 2.0, "tensor": torch.tensor(2.0)}
ACTIVATION: Callable[[torch.Tensor], torch.Tensor] = torch.relu
BY_NAME: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"act": torch.relu}
HOLDER = SimpleNamespace(tensor=torch.tensor(2.0))
OTHER = nn.Linear(6, 6).requires_grad_(False)
COUNT = torch.zeros(())


class Small(nn.Module):
    scale: ClassVar[Any] = 2.0
    kept: ClassVar[Any] = torch.tensor(2.0)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.last(self.between(self.first(x)))

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h


class OfNumbers(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        for _ in range(STEPS):
            h = h.tanh() * SCALE
        return h


class OfClass(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * self.scale + type(self).scale


class OfTensor(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * TENSOR


class OfTable(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * TABLE["tensor"] * TABLE["scale"]


class OfHolder(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * HOLDER.tensor


class OfClassTensor(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * self.kept


class OfModule(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = OTHER(h)
        return out


class OfFunction(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return BY_NAME["act"](ACTIVATION(h))


class OfEnvironment(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * float(os.environ["SDP_TEST_OUTSIDE"])


class OfDefault(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return (h.double() * torch.ones(6)).to(torch.get_default_dtype()).sin().to(h.dtype)


class Counting(Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        COUNT.add_(1)
        return h * COUNT


class Enclosed(Small):
    def __init__(self) -> None:
        super().__init__()
        held = [torch.tensor(2.0)]
        self.act = lambda h: h * held[0]
        type(self).held = held

    held: ClassVar[list[torch.Tensor]] = []

    def between(self, h: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.act(h)
        return out


def assign(name: str, make: Callable[[], Any]) -> Callable[[], None]:
    """Returns a function that gives a variable of this file a new value."""
    return lambda: globals().__setitem__(name, make())


def nothing() -> None:
    """Changes nothing."""


Change = Callable[[], object]
CHANGES: dict[type[Small], tuple[Change, Change]] = {
    OfNumbers: (assign("SCALE", lambda: 3.0), assign("STEPS", lambda: 1)),
    OfClass: (lambda: setattr(OfClass, "scale", 3.0), lambda: setattr(OfClass, "scale", 4.0)),
    OfTensor: (assign("TENSOR", lambda: torch.tensor(3.0)), lambda: TENSOR.fill_(4.0)),
    OfTable: (lambda: TABLE["tensor"].mul_(2), lambda: TABLE.update(scale=3.0)),  # type: ignore[attr-defined]
    OfHolder: (lambda: setattr(HOLDER, "tensor", torch.tensor(3.0)), lambda: HOLDER.tensor.mul_(2)),
    OfClassTensor: (lambda: setattr(OfClassTensor, "kept", torch.tensor(3.0)), lambda: OfClassTensor.kept.mul_(2)),
    OfModule: (lambda: OTHER.weight.mul_(2), lambda: OTHER.bias.add_(1)),
    OfFunction: (assign("ACTIVATION", lambda: torch.tanh), lambda: BY_NAME.update(act=torch.sigmoid)),
    OfEnvironment: (lambda: os.environ.update(SDP_TEST_OUTSIDE="3"), lambda: os.environ.update(SDP_TEST_OUTSIDE="4")),
    Enclosed: (lambda: Enclosed.held.__setitem__(0, torch.tensor(3.0)), lambda: Enclosed.held[0].mul_(2)),
}


def reset() -> None:
    """Gives all variables the values that they have at first."""
    values = {"SCALE": 2.0, "STEPS": 2, "TENSOR": torch.tensor(2.0), "ACTIVATION": torch.relu}
    globals().update(values)
    TABLE.update(scale=2.0, tensor=torch.tensor(2.0))
    BY_NAME.update(act=torch.relu)
    HOLDER.tensor = torch.tensor(2.0)
    OfClass.scale, OfClassTensor.kept = 2.0, torch.tensor(2.0)
    os.environ["SDP_TEST_OUTSIDE"] = "2"
    torch.nn.init.eye_(OTHER.weight)
    torch.nn.init.zeros_(OTHER.bias)
