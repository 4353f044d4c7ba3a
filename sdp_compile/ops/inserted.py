"""The functions that passes insert into graphs, besides ATen operators.

They are ordinary Python functions on tensors: readable in ``model.code``, inlined by TorchDynamo, without state.
"""

from __future__ import annotations

import torch


def all_reduce_mean(*parameters: torch.Tensor, bucket: int, owners: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """The identity; marks that these parameters' gradients are averaged over ``owners`` as bucket ``bucket``.

    It stands before the first use of any of them, so backward passes it when all of these gradients are complete. The
    module's gradient engine issues its buckets in ascending number, the same order on all workers, while backward runs:
    in eager mode when hooks of the parameters tell that their gradients are there, which costs this node nothing; in a
    compiled graph when backward passes this node (`sdp_compile.runtime.gradients.compiled`). What is averaged is
    ``.grad`` and not the gradient that flows through this node, because several backward passes may accumulate before
    one reduction.
    """
    return parameters


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


def rescale(activation: torch.Tensor, factor: float | tuple[float, ...], dim: int) -> torch.Tensor:
    """``activation`` times N / owners, so that its sum over the units kept has the full model's expectation.

    One factor, or one per index of ``dim`` where the units have different numbers of owners.
    """
    if isinstance(factor, float):
        return activation * factor
    shape = [1] * activation.ndim
    shape[dim] = -1
    return activation * torch.tensor(factor, dtype=activation.dtype, device=activation.device).view(shape)
