"""Reading a parameter of which a worker owns a part."""

from __future__ import annotations

import torch


def mask_parameter(parameter: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
    """``parameter`` where all ``masks`` (broadcastable, bool) hold, else 0; its gradient likewise.

    ``where`` rather than a product: an infinite or NaN element that a worker does not own must not leak (inf * 0).
    """
    for mask in masks:
        parameter = torch.where(mask, parameter, 0)
    return parameter


def mask_gradient(parameter: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
    """``parameter``; its gradient is 0 where not all ``masks`` (broadcastable, bool) hold."""
    held = parameter.detach()
    # Of two equal values, only one has a gradient: no hook is needed, so this also compiles.
    return torch.where(_all(masks), parameter, held)


MASKS = (mask_parameter, mask_gradient)
"""The functions through which a parameter with masks is read."""


def _all(masks: tuple[torch.Tensor, ...]) -> torch.Tensor:
    result = masks[0]
    for mask in masks[1:]:
        result = result & mask
    return result
