"""Fixes sizes of the inputs while forward is traced, where later sizes would become too long formulas of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import Mod, PythonMod

Sizes = Literal["all", "leading", "none"]
"""Which sizes of the inputs are free: all, the first of each input, or none."""

# Operators in one symbolic size; convolutions and attention stay below that. Padding to multiples of a window (Swin)
# makes every later size a formula of remainders, and torch then takes minutes instead of seconds (measured).
_LIMIT = 10
_REMAINDERS = (Mod, PythonMod)


class SizesTooComplex(Exception):
    """A size that depends on values became a formula that is too long to reason about. The text says where."""


class FreeSizes:
    """The sizes of the inputs of one traced run, of which it fixes as many as it must.

    A size that Python reads as a number becomes fixed in the rest of the trace, as in any export with free sizes. So
    the trace need not begin again.

    Attributes:
        left: Which sizes are still free.
        because: Why the others are not; empty if all are.
    """

    def __init__(self) -> None:
        self.left: Sizes = "all"
        self.because = ""
        self._leading: list[Any] = []
        self._others: list[Any] = []

    def note_inputs(self, subject: nn.Module) -> None:
        """Makes ``forward`` of a model note the sizes of its inputs first."""
        forward = subject.forward

        @functools.wraps(forward)
        def noting(*args: Any, **kwargs: Any) -> Any:
            for leaf in pytree.tree_leaves((args, kwargs)):
                if isinstance(leaf, torch.Tensor):
                    self._leading += leaf.shape[:1]
                    self._others += leaf.shape[1:]
            return forward(*args, **kwargs)

        vars(subject)["forward"] = noting  # a part of the model may have this name too

    def keep_simple(self, shape: torch.Size, line: Callable[[], str]) -> None:
        """Fixes input sizes until ``shape`` is simple: first those that are no input's leading one.

        Args:
            shape: The shape of a tensor in the model.
            line: Returns the line that made the tensor.

        Raises:
            SizesTooComplex: The shape is complex, but not because of the inputs.
        """
        if all(map(_is_simple, shape)):
            return
        self.because = f"sizes in the model become too long formulas of the input sizes at {line()}"
        steps: tuple[tuple[Sizes, list[Any]], ...] = (("leading", self._others), ("none", self._leading))
        for self.left, sizes in steps:
            for size in sizes:
                int(size)
            if all(map(_is_simple, shape)):
                return
        raise SizesTooComplex(f"sizes that depend on values of tensors become too long formulas at {line()}")


def _is_simple(size: Any) -> bool:
    if isinstance(size, int):
        return True
    formula = size.node.expr
    return not formula.has(*_REMAINDERS) and int(formula.count_ops()) <= _LIMIT
