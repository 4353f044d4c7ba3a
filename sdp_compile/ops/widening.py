"""Puts zeros where a worker lacks units of an activation that an operator needs whole."""

from __future__ import annotations

from torch import Tensor

from sdp_compile.ops.narrow import Runs, join


def widen(tensor: Tensor, dim: int, runs: Runs) -> Tensor:
    """Returns the full tensor: what the worker holds along ``dim``, and zeros elsewhere.

    Args:
        tensor: The part that the worker holds.
        dim: The dimension.
        runs: The lengths of alternating stretches of the full dimension, the first of them held.
    """
    shape = list(tensor.shape)
    shape[dim] = sum(runs[1::2])
    return join(tensor, tensor.new_zeros(shape), dim, runs)
