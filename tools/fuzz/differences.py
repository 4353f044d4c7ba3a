"""Differences between two values of any structure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sdp_compile.checking.compare import relative_error


@dataclass(frozen=True)
class Difference:
    """One value that differs.

    Attributes:
        kind: What kind of value, such as ``output``.
        place: Which one, the same text in each call.
        what: How it differs.
        error: The relative error of a tensor; infinity if it is infinite or NaN in other places. None for everything
            else, which rounding cannot change: structure, shape, dtype and values that are no floating-point tensors.
    """

    kind: str
    place: str
    what: str
    error: float | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.place} {self.what}".strip()

    def within(self, name: str) -> Difference:
        """Returns the same difference, as one of the value called ``name``."""
        return replace(self, place=f"{name} {self.place}")


def differences(kind: str, actual: Any, expected: Any, above: float, floor: float = 1e-12) -> list[Difference]:
    """Returns how ``actual`` differs from ``expected``: in structure, dtype, gradient or value.

    Args:
        kind: What is compared, such as ``output``.
        actual: The subnetwork's value.
        expected: The original's value.
        above: The largest relative error that does not count.
        floor: Errors are relative to the largest expected absolute value, or to this if it is larger.
    """
    left, left_spec = pytree.tree_flatten(actual)
    right, right_spec = pytree.tree_flatten(expected)
    if left_spec != right_spec:
        return [Difference(kind, "", f"{_short(actual)} instead of {_short(expected)}")]
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(expected)[0]]
    found = []
    for path, one, other in zip(paths, left, right, strict=True):
        place = path.strip("[]") or "value"
        if text := _other_than_value(one, other):
            found.append(Difference(kind, place, text))
        elif isinstance(other, Tensor) and other.is_floating_point():
            error = deviation(one, other, floor)
            if error > above:
                text = f"deviates by {error:.1e}" if error < math.inf else "is infinite or NaN in other places"
                found.append(Difference(kind, place, text, error))
    return found


def deviation(actual: Tensor, expected: Tensor, floor: float) -> float:
    """Returns the relative error, without NaN and equal infinities in the same places; infinity if there are others."""
    nan = torch.isnan(expected)
    if not torch.equal(torch.isnan(actual), nan):
        return math.inf
    return relative_error(actual.detach().masked_fill(nan, 0.0), expected.detach().masked_fill(nan, 0.0), floor)


def largest(tensors: Iterable[Tensor]) -> float:
    """Returns the largest absolute value that is finite; 1.0 if there is none."""
    finite = [one[torch.isfinite(one)].abs() for one in tensors]
    return max((float(one.max()) for one in finite if one.numel()), default=1.0)


def _other_than_value(actual: Any, expected: Any) -> str:
    if isinstance(actual, Tensor) != isinstance(expected, Tensor):
        return f"is {_short(actual)} instead of {_short(expected)}"
    if not isinstance(expected, Tensor):
        return "" if _same(actual, expected) else f"is {_short(actual)} instead of {_short(expected)}"
    if actual.dtype != expected.dtype:
        return f"is {actual.dtype} instead of {expected.dtype}"
    if actual.requires_grad != expected.requires_grad:
        return f"{'has a' if actual.requires_grad else 'lacks its'} gradient"
    if actual.shape != expected.shape:
        return f"has shape {list(actual.shape)} instead of {list(expected.shape)}"
    if not expected.is_floating_point() and not torch.equal(actual, expected):
        return f"is {_short(actual)} instead of {_short(expected)}"
    return ""


def _same(actual: Any, expected: Any) -> bool:
    if isinstance(actual, float) and isinstance(expected, float):
        return actual == expected or abs(actual - expected) <= 1e-9 * abs(expected) or actual != actual != expected
    return type(actual) is type(expected) and bool(actual == expected)


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"tensor{list(value.shape)}" if value.numel() > 4 else f"tensor({value.tolist()})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(map(str, value)) + "}"
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
