"""Differences between two values of any structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sdp_compile.checking.compare import relative_error

Difference = tuple[str, str]
"""What kind of value differs, and how."""


def differences(kind: str, actual: Any, expected: Any, tolerance: float, floor: float = 1e-12) -> list[Difference]:
    """Returns how ``actual`` differs from ``expected``: in structure, dtype, gradient or value.

    Args:
        kind: What is compared, such as ``output``.
        actual: The subnetwork's value.
        expected: The original's value.
        tolerance: The largest relative error of a tensor.
        floor: Errors are relative to the largest expected absolute value, or to this if it is larger.
    """
    left, left_spec = pytree.tree_flatten(actual)
    right, right_spec = pytree.tree_flatten(expected)
    if left_spec != right_spec:
        return [(kind, f"{_short(actual)} instead of {_short(expected)}")]
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(expected)[0]]
    found = []
    for path, one, other in zip(paths, left, right, strict=True):
        text = _difference(one, other, tolerance, floor)
        if text:
            found.append((kind, f"{path.strip('[]') or 'value'} {text}"))
    return found


def _difference(actual: Any, expected: Any, tolerance: float, floor: float) -> str:
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
    actual, expected = actual.detach(), expected.detach()
    if not expected.is_floating_point():
        return "" if torch.equal(actual, expected) else f"is {_short(actual)} instead of {_short(expected)}"
    if torch.isnan(expected).any() and torch.equal(torch.isnan(actual), torch.isnan(expected)):
        actual, expected = actual.nan_to_num(0.0), expected.nan_to_num(0.0)
    error = relative_error(actual, expected, floor)
    return "" if error <= tolerance else f"deviates by {error:.1e}"


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
