"""Compares a worker's run with the oracle's, on the elements that the worker owns."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from sdp_compile.checking.oracle import Run
from sdp_compile.planning.plan import Plan

TOLERANCE = 1e-9
"""Largest relative deviation that counts as exact, in float64."""

Kind = Literal["output", "gradient", "statistic"]


@dataclass(frozen=True)
class Deviation:
    """One compared tensor; ``error`` is its `relative_error`."""

    kind: Kind
    name: str
    error: float

    @property
    def is_exact(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error < TOLERANCE  # False for NaN

    def __str__(self) -> str:
        what = {"output": "output", "gradient": "the gradient of", "statistic": "the running statistic"}[self.kind]
        return f"{what} {self.name} deviates by {self.error:.1e}"


def relative_error(actual: torch.Tensor, expected: torch.Tensor, floor: float = 1e-12) -> float:
    """Returns the largest deviation, divided by the largest expected absolute value or ``floor``, if that is larger.

    Equal infinities deviate by 0, NaN by NaN, and tensors of different shapes by infinity.
    """
    if actual.shape != expected.shape:
        return float("inf")
    actual, expected = actual.detach(), expected.detach()
    if not expected.numel():
        return 0.0
    if torch.isinf(expected).any():
        infinite = torch.isinf(expected)
        if not torch.equal(actual[infinite], expected[infinite]):
            return float("inf")
        actual, expected = actual.masked_fill(infinite, 0.0), expected.masked_fill(infinite, 0.0)
    scale = expected.abs().max().clamp(min=floor)
    return float((actual - expected).abs().max() / scale)


def owned(full: torch.Tensor, plan: Plan, name: str, rank: int) -> torch.Tensor:
    """Returns the elements of a full tensor that ``rank`` owns, in ascending order, as a flat tensor."""
    return full[plan.mask(name, rank)]


def gradient_floor(run: Run) -> float:
    """Returns 1e-5 of the largest gradient. Below that, a gradient is only rounding, like a key bias under softmax."""
    return 1e-5 * max((float(g.abs().max()) for g in run.gradients.values() if g.numel()), default=1.0)


def deviations(
    actual: Run, expected: Run, plan: Plan, rank: int, held: Collection[str], persistent: Collection[str]
) -> Iterator[Deviation]:
    """Yields the deviations of outputs, gradients of owned elements and running statistics of owned channels.

    Args:
        actual: The worker's run.
        expected: The oracle's run.
        plan: The plan, whose masks say what the worker owns.
        rank: The worker.
        held: Names of the parameters that the worker has.
        persistent: Names in the original's ``state_dict()``; other buffers are not compared.
    """
    if len(actual.outputs) != len(expected.outputs):
        yield Deviation("output", f"count ({len(actual.outputs)} for {len(expected.outputs)})", float("inf"))
        return
    for number, (output, reference) in enumerate(zip(actual.outputs, expected.outputs, strict=True)):
        yield Deviation("output", str(number), relative_error(output, reference))
    floor = gradient_floor(expected)
    for name, gradient in expected.gradients.items():
        wanted = owned(gradient, plan, name, rank)
        if name not in held:
            yield Deviation("gradient", name, float("inf") if wanted.numel() else 0.0)
        elif name not in actual.gradients:
            yield Deviation("gradient", name, float("inf") if wanted.any() else 0.0)
        else:
            yield Deviation("gradient", name, relative_error(actual.gradients[name].reshape(-1), wanted, floor))
    for name in set(actual.gradients) - set(expected.gradients):
        if actual.gradients[name].any():
            yield Deviation("gradient", name, float("inf"))
    for name, buffer in actual.buffers.items():
        if name in persistent and name in expected.buffers and (buffer.is_floating_point() or buffer.is_complex()):
            wanted = owned(expected.buffers[name], plan, name, rank)
            yield Deviation("statistic", name, relative_error(buffer.reshape(-1), wanted))
