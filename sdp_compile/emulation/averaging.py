"""From the gradients of emulated workers to those of the full model: the means over the owners of each element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.plan import Plan
from sdp_compile.planning.regions import Region


class Means:
    """Adds up the gradients of the workers of a plan, and divides the sums by the owners of each element.

    Args:
        plan: Who owns what.
        is_sum: Whether a mean over owners stands for a sum over all workers, as with ``reduction="sum"``.
    """

    def __init__(self, plan: Plan, is_sum: bool = False) -> None:
        self._plan, self._is_sum = plan, is_sum
        self._sums: dict[str, Tensor] = {}
        self._parts: dict[str, list[tuple[OwnerSet, Region]]] = {}
        self._averaged = {piece.name for bucket in plan.buckets() for piece in bucket.pieces}

    def clear(self) -> None:
        """Forgets what an interrupted step has added."""
        self._sums = {}

    @torch.no_grad()
    def add(self, name: str, region: Region, gradient: Tensor, like: Tensor, weight: float) -> None:
        """Adds one worker's gradient of a parameter.

        Args:
            name: The full parameter.
            region: Where the gradient lies in it.
            gradient: The gradient, of the region's shape.
            like: The full parameter.
            weight: What the gradient counts.
        """
        if name not in self._sums:
            self._sums[name] = torch.zeros_like(like)
        region.add(self._sums[name], gradient, weight)

    @torch.no_grad()
    def finish(self, parameters: Mapping[str, nn.Parameter], weights: Sequence[float]) -> None:
        """Adds the means to ``.grad`` of the full parameters, and starts anew.

        A parameter of which no worker has a gradient gets zeros where owners average it, as in a process group.

        Args:
            parameters: The full parameters by canonical name.
            weights: What each worker's gradients count.
        """
        for name in self._averaged.difference(self._sums):
            self._sums[name] = torch.zeros_like(parameters[name])
        for name, total in self._sums.items():
            parts = [(self._factor(owners, weights), region) for owners, region in self._owners(name)]
            if len({factor for factor, _ in parts}) == 1:
                total.mul_(parts[0][0])
            else:
                for factor, region in parts:
                    region.scale(total, factor)
            parameter = parameters[name]
            parameter.grad = total if parameter.grad is None else parameter.grad.add_(total)
        self._sums = {}

    def _factor(self, owners: OwnerSet, weights: Sequence[float]) -> float:
        if self._is_sum:
            return len(weights) / len(owners)
        share = sum(weights[worker] for worker in owners)
        return 1 / share if share else 0.0

    def _owners(self, name: str) -> list[tuple[OwnerSet, Region]]:
        """Returns the parts of a parameter that have the same owners."""
        if name not in self._parts:
            pieces = [piece for piece in self._plan.pieces(name) if piece.numel and piece.owners]
            self._parts[name] = [(piece.owners, Region(piece.index)) for piece in pieces]
        return self._parts[name]
