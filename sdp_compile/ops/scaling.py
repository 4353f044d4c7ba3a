"""Keeping the expected size of a sum over the units that a worker owns."""

from __future__ import annotations

import torch


def rescale(activation: torch.Tensor, factor: float | tuple[float, ...], dim: int) -> torch.Tensor:
    """``activation`` times N / owners, so that its sum over the units kept has the full model's expectation.

    One factor, or one per index of ``dim`` where the units have different numbers of owners.
    """
    if isinstance(factor, float):
        return activation * factor
    shape = [1] * activation.ndim
    shape[dim] = -1
    return activation * torch.tensor(factor, dtype=activation.dtype, device=activation.device).view(shape)
