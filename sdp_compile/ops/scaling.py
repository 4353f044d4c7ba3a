"""Scaling that keeps the expected size of a sum over the units that a worker owns."""

from __future__ import annotations

import torch


def rescale(activation: torch.Tensor, factor: float | tuple[float, ...], dim: int) -> torch.Tensor:
    """Multiplies by N / owners, so that a sum over the kept units has the expectation of the full model.

    Args:
        activation: The activation.
        factor: One factor, or one per index of ``dim`` if the units have different numbers of owners.
        dim: The dimension of the units.
    """
    if isinstance(factor, float):
        return activation * factor
    shape = [1] * activation.ndim
    shape[dim] = -1
    return activation * torch.tensor(factor, dtype=activation.dtype, device=activation.device).view(shape)
