"""How masked graphs read a parameter that a worker owns in part."""

from __future__ import annotations

import torch


def mask_parameter(parameter: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
    """Returns a parameter with zeros outside its masks; its gradient has the same zeros.

    It uses ``where`` and not a product, because an infinite or NaN element that a worker does not own must not become
    NaN (inf * 0).

    Args:
        parameter: The full-size parameter.
        masks: Bool tensors that broadcast to its shape; an element is owned if it is in all of them.
    """
    for mask in masks:
        parameter = torch.where(mask, parameter, 0)
    return parameter


def mask_gradient(parameter: torch.Tensor, *masks: torch.Tensor) -> torch.Tensor:
    """Returns a parameter unchanged; its gradient has zeros outside the masks.

    Args:
        parameter: The full-size parameter.
        masks: Bool tensors that broadcast to its shape; an element is owned if it is in all of them.
    """
    held = parameter.detach()
    # Both values are equal but only one has a gradient. Without a hook, this also compiles.
    return torch.where(_all(masks), parameter, held)


MASKS = (mask_parameter, mask_gradient)
"""The functions that read a parameter with masks."""


def _all(masks: tuple[torch.Tensor, ...]) -> torch.Tensor:
    result = masks[0]
    for mask in masks[1:]:
        result = result & mask
    return result
