"""Concrete sizes for symbolic shapes.

The analysis compares sizes to see which dimensions a view splits and merges. With the example's sizes, a batch of 12
could be mistaken for 12 heads. So each symbol stands for its example value times a prime of its own. The result is
divisible by what the example is divisible by, and different from every other size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch

_FIRST_PRIME = 10007


class FreeSize(int):
    """A number that stands for a size that differs between calls; what is computed from it is a free size too."""


def _free(name: str) -> Callable[[int, int], int]:
    plain = getattr(int, name)

    def method(self: int, other: int) -> int:
        result = plain(self, other)
        return FreeSize(result) if isinstance(result, int) else NotImplemented

    return method


for _operator in ("add", "sub", "mul", "floordiv", "mod"):
    for _name in (f"__{_operator}__", f"__r{_operator}__"):
        setattr(FreeSize, _name, _free(_name))


class Sizes:
    """Gives numbers to the symbolic sizes of one capture: `distinct` for the analysis, `example` for costs."""

    def __init__(self) -> None:
        self._distinct: dict[sympy.Symbol, int] = {}
        self._example: dict[sympy.Symbol, int] = {}
        self._cache: dict[tuple[Any, bool], int] = {}
        self._prime = _FIRST_PRIME

    def distinct(self, tensor: Any) -> tuple[int, ...]:
        """Returns the shape of ``tensor`` with a different number, a `FreeSize`, for each free size."""
        return tuple(self._value(length, distinct=True) for length in tensor.shape)

    def example(self, tensor: Any) -> tuple[int, ...]:
        """Returns the shape of ``tensor`` at capture."""
        return tuple(self._value(length, distinct=False) for length in tensor.shape)

    def _value(self, length: int | torch.SymInt, distinct: bool) -> int:
        if isinstance(length, int):
            return length
        expression = length.node.expr
        key = (expression, distinct)
        if key not in self._cache:
            for symbol in sorted(expression.free_symbols, key=str):
                self._add(symbol, length)
            values = self._distinct if distinct else self._example
            value = int(expression.xreplace(values))
            self._cache[key] = FreeSize(value) if distinct and expression.free_symbols else value
        return self._cache[key]

    def _add(self, symbol: sympy.Symbol, length: torch.SymInt) -> None:
        if symbol in self._example:
            return
        environment: Any = length.node.shape_env
        # torch before 2.12 has only the second name.
        renamed = hasattr(environment, "backed_var_to_val")
        known = environment.backed_var_to_val if renamed else environment.var_to_val
        example = int(known.get(symbol, 2))  # a size that depends on tensor values has no example
        self._example[symbol] = sympy.Integer(example)
        self._distinct[symbol] = sympy.Integer(example * self._prime)
        self._prime = int(sympy.nextprime(self._prime))
