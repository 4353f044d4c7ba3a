"""Numbers that forward reads and a graph takes as inputs: where they are, and what Python computes from them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sdp_compile.ir.reads import Read, ReadKind

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(operator, name) for name in "add sub mul truediv floordiv mod pow neg lt le gt ge eq ne".split()},
    **{function.__name__: function for function in (bool, int, round)},
    **{f"math.{name}": function for name, function in vars(math).items() if callable(function)},
}
"""What Python code may compute from a number, by name."""


@dataclass(frozen=True)
class Place:
    """Where forward finds a number.

    Attributes:
        kind: See `Read`, as for the following.
        owner: The module's path, or the global variable's Python module.
        name: The name of the attribute or the variable.
        path: The keys that lead from there to the number, if it is part of an object, a dictionary or a list.
    """

    kind: ReadKind
    owner: str
    name: str
    path: tuple[str | int, ...] = ()

    def now(self, model: nn.Module) -> Any:
        """Returns what is there now in ``model``; raises LookupError if there is nothing."""
        value: Any = Read(self.kind, self.owner, self.name, None).now(model)
        for key in self.path:
            inner: Any = value if isinstance(value, (Mapping, list)) else vars(value)
            value = inner[key]
        return value


@dataclass(frozen=True)
class Ref:
    """Stands for a number, or for the result of an earlier step."""

    index: int


@dataclass(frozen=True)
class Step:
    """One call of a function of `FUNCTIONS`; its arguments are numbers and references to numbers."""

    function: str
    arguments: tuple[Any, ...]

    def value(self, known: Sequence[Any]) -> Any:
        """Returns the result, given the values that references stand for."""
        arguments = [known[item.index] if isinstance(item, Ref) else item for item in self.arguments]
        return FUNCTIONS[self.function](*arguments)


@dataclass(frozen=True)
class Numbers:
    """The numbers that a graph takes after the inputs of forward.

    Attributes:
        places: For each number that may change, all places where forward finds it.
        steps: What forward computes from these numbers in Python, in order. `Ref` counts the numbers first.
        conditions: What forward asked of them, with the answers that the graph is right for.
        inputs: The numbers and results that the graph takes, in the order of its placeholders.
    """

    places: tuple[tuple[Place, ...], ...]
    steps: tuple[Step, ...]
    conditions: tuple[tuple[Step, Any], ...]
    inputs: tuple[int, ...]

    @property
    def has_globals(self) -> bool:
        """Whether some are global variables."""
        return any(place.kind == "global" for places in self.places for place in places)

    def now(self, model: nn.Module) -> tuple[float, ...] | None:
        """Returns the values of the graph's inputs, or None if the graph is not right for what ``model`` holds.

        What the analysis says of a number is right for all that are finite and not 0.
        """
        known: list[Any] = []
        try:
            for places in self.places:
                values = [place.now(model) for place in places]
                if any(type(value) is not float or value != values[0] for value in values):
                    return None
                known.append(values[0])
            for step in self.steps:
                known.append(step.value(known))
            for step, answer in self.conditions:
                found = step.value(known)
                if type(found) is not type(answer) or found != answer:
                    return None
        except (ArithmeticError, LookupError, AttributeError, TypeError, ValueError):
            return None  # forward itself will say what is wrong
        if not all(type(value) is float and math.isfinite(value) for value in known):
            return None
        inputs = tuple(known[index] for index in self.inputs)
        return inputs if all(inputs) else None
