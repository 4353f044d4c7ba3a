"""Formulas for the bytes that a worker sends per step, to compare with the count."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from torch import nn

from sdp_compile.bench.contestant import repeated_blocks
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.comm.traffic import sent_bytes

TOLERANCE = 0.01
"""Relative difference between count and formula that is accepted."""


@dataclass(frozen=True)
class Prediction:
    """Bytes that one worker sends per step; up to ``padding`` more bytes fill up unequal parts."""

    nbytes: float
    padding: float = 0.0

    def holds(self, counted: float) -> bool:
        """Whether a count agrees with the prediction to 1%, with or without padding."""
        return (1 - TOLERANCE) * self.nbytes <= counted <= (1 + TOLERANCE) * (self.nbytes + self.padding)


def predict_ddp(model: nn.Module, workers: int) -> Prediction:
    """Predicts DDP: one ring all-reduce of all gradients, and a broadcast of the buffers before each forward pass."""
    gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    return Prediction(sent_bytes("all_reduce", gradients, workers) + sent_bytes("broadcast", buffers, workers))


def predict_fsdp2(model: nn.Module, workers: int) -> Prediction:
    """Predicts FSDP2.

    The parameters of each block are gathered for forward and again for backward, those of the root once. All gradients
    are reduce-scattered. Dimension 0 of each parameter is padded to a multiple of the number of workers.
    """
    of_blocks = dict.fromkeys(parameter for block in repeated_blocks(model) for parameter in block.parameters())
    of_root = [parameter for parameter in model.parameters() if parameter not in of_blocks]
    plain = padded = 0.0
    for parameters, gathers in ((list(of_blocks), 2), (of_root, 1)):
        plain += _fsdp2_bytes(parameters, gathers, workers, pad=False)
        padded += _fsdp2_bytes(parameters, gathers, workers, pad=True)
    return Prediction(plain, padded - plain)


def _fsdp2_bytes(parameters: Sequence[nn.Parameter], gathers: int, workers: int, pad: bool) -> float:
    total = 0.0
    for parameter in parameters:
        rows = parameter.shape[0] if parameter.ndim else 1
        nbytes = parameter.nbytes / rows * (ceil(rows / workers) * workers) if pad and rows else parameter.nbytes
        total += sent_bytes("all_gather", nbytes, workers) * gathers
        total += sent_bytes("reduce_scatter", nbytes, workers) * parameter.requires_grad
    return total


def predict_sdp(plan: Plan, rank: int, bucket_bytes: int) -> Prediction:
    """Predicts SDP from ``plan.communication(rank)``.

    That is 2 (P-1)/P of the gradient bytes of each set of P owners, and the refresh of backward masking. Owners split
    each bucket into equal, padded chunks.
    """
    padding = sum(
        sent_bytes("all_reduce", bucket.padding_bytes, len(bucket.owners))
        for bucket in plan.buckets(rank, bucket_bytes)
    )
    return Prediction(plan.communication(rank).total, padding)


def flops_imbalance(flops: Iterable[float]) -> float:
    """Returns the FLOPs of the most loaded worker, divided by the mean."""
    values = list(flops)
    return max(values) * len(values) / sum(values) if sum(values) else 1.0
