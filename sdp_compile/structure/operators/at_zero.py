"""What operators do at 0: the outcomes, and the declarations that many operators share.

A declaration says what a call gives where some of its arguments are 0 and all others are finite. Axis analysis asks it
for the units that a worker lacks, block analysis for a whole tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias


class Outcome(Enum):
    """What is known of a tensor, or of a number.

    ``FINITE`` values and their gradients are finite; ``ZERO`` values are also 0. ``UNDEFINED`` ones may be NaN or
    infinite, or have such a gradient, as ``0 / 0`` in weight normalisation.
    """

    ZERO = "zero"
    FINITE = "finite"
    UNDEFINED = "undefined"


@dataclass(frozen=True)
class Call:
    """The arguments of one call by the names of its schema, and whether each is 0."""

    arguments: Mapping[str, Any]
    is_zero: Callable[[Any], bool]

    def zero(self, *names: str) -> bool:
        """Returns whether one of these arguments is 0."""
        return any(self.is_zero(self.arguments[name]) for name in names if name in self.arguments)

    def absent(self, *names: str) -> bool:
        """Returns whether each of these arguments is missing or 0."""
        return all(self.arguments.get(name) is None or self.zero(name) for name in names)

    def first(self, count: int) -> list[bool]:
        """Returns for each of the first arguments whether it is 0."""
        return [self.is_zero(value) for value in list(self.arguments.values())[:count]]


AtZero: TypeAlias = Callable[[Call], Outcome]
"""Returns what is known of the result of a call, of several results of the first."""


def zero_if(condition: bool) -> Outcome:
    """Returns ZERO where the condition holds, else FINITE."""
    return Outcome.ZERO if condition else Outcome.FINITE


def makes_zeros(call: Call) -> Outcome:
    """Returns ZERO."""
    return Outcome.ZERO


def keeps_zero(call: Call) -> Outcome:
    """Returns ZERO where the first argument is 0."""
    return zero_if(all(call.first(1)))


def undefined(call: Call) -> Outcome:
    """Returns UNDEFINED where the first argument is 0."""
    return Outcome.UNDEFINED if all(call.first(1)) else Outcome.FINITE


def undefined_if_any(call: Call) -> Outcome:
    """Returns UNDEFINED where one of the first two arguments is 0."""
    return Outcome.UNDEFINED if any(call.first(2)) else Outcome.FINITE


def both_zero(call: Call) -> Outcome:
    """Returns ZERO where both of the first two arguments are 0, as in a sum."""
    return zero_if(all(call.first(2)))


def either_zero(call: Call) -> Outcome:
    """Returns ZERO where one of the first two arguments is 0, as in a product."""
    return zero_if(any(call.first(2)))


def product_and_sum(call: Call) -> Outcome:
    """Returns ZERO where the first argument is 0, and one of the two whose product is added to it."""
    summand, *factors = call.first(3)
    return zero_if(summand and any(factors))


def affine(call: Call) -> Outcome:
    """Returns ZERO where the input or the weight is 0, and the bias is 0 or absent."""
    return zero_if(call.zero("input", "weight") and call.absent("bias"))
