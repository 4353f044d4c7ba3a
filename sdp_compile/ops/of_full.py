"""Operators that divide by a length, on tensors of which a worker holds a part; what it lacks is 0."""

from __future__ import annotations

from math import prod

import torch


def mean_of_full(
    tensor: torch.Tensor, dim: list[int], keepdim: bool, dtype: torch.dtype | None, kept: list[int], full: list[int]
) -> torch.Tensor:
    """Returns the mean over ``dim`` of a tensor that holds ``kept`` of ``full`` indices there; the others are 0.

    Args:
        tensor: The part that the worker holds, of any shape.
        dim: The dimensions to average over.
        keepdim: Whether those stay, with size 1.
        dtype: The dtype of the result; None for the tensor's.
        kept: The sizes of the dimensions that are held in part.
        full: Their sizes in the full tensor, in the same order.
    """
    return tensor.mean(dim, keepdim=keepdim, dtype=dtype) * (prod(kept) / prod(full))


def standardise_of_full(tensor: torch.Tensor, eps: float, kept: list[int], full: list[int]) -> torch.Tensor:
    """Returns the batch norm of a tensor by its own statistics; it holds ``kept`` of ``full`` indices, others are 0.

    Args:
        tensor: The part that the worker holds, (batch, channels, ...).
        eps: What is added to the variance.
        kept: The sizes of the dimensions, channels aside, that are held in part.
        full: Their sizes in the full tensor, in the same order.
    """
    dims = [d for d in range(tensor.ndim) if d != 1]
    held = tensor.numel() // tensor.shape[1]
    whole = held // prod(kept) * prod(full)
    mean = tensor.sum(dims, keepdim=True) / whole
    centred = tensor - mean
    variance = (centred.square().sum(dims, keepdim=True) + (whole - held) * mean.square()) / whole
    return centred * torch.rsqrt(variance + eps)
