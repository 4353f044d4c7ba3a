"""The memory and communication of a worker, in exact bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from sdp_compile.ir.program import StateTensor
from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.owners import OwnerSets

ADAMW_STEP_BYTES = 4
"""Bytes of the float32 step counter that AdamW keeps for each parameter, besides its two moments."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a worker's parameters, gradients, AdamW state (two moments and a step counter) and buffers."""

    parameters: int
    gradients: int
    optimizer_state: int
    buffers: int

    @property
    def total(self) -> int:
        """Parameters, gradients and optimizer state: what partitioning shrinks."""
        return self.parameters + self.gradients + self.optimizer_state


@dataclass(frozen=True)
class Communication:
    """Bytes that a worker sends per optimizer step, with ring all-reduces.

    Attributes:
        partitioned: Gradients of cut parameters.
        shared: Gradients of shared parameters.
        dense: What data parallelism would send.
        groups: The number of owner groups that the worker is a member of.
        refresh: Updated values of cut parameters, under backward masking.
    """

    partitioned: float
    shared: float
    dense: float
    groups: int
    refresh: float = 0.0

    @property
    def total(self) -> float:
        """Everything that the worker sends."""
        return self.partitioned + self.shared + self.refresh


def memory(state: Mapping[str, StateTensor], shapes: Mapping[str, tuple[int, ...] | None]) -> Memory:
    """Returns the memory of a worker that holds tensors of these shapes; a shape is None if it holds nothing of one."""
    parameters = gradients = optimizer_state = buffers = 0
    for name, tensor in state.items():
        shape = shapes[name]
        if shape is None:
            continue
        nbytes = prod(shape) * tensor.dtype.itemsize
        if tensor.kind != "parameter":
            buffers += nbytes
            continue
        parameters += nbytes
        if tensor.requires_grad:
            gradients += nbytes
            optimizer_state += 2 * nbytes + ADAMW_STEP_BYTES
    return Memory(parameters, gradients, optimizer_state, buffers)


def communication(workers: int, pieces: Iterable[Piece], state: Mapping[str, StateTensor]) -> Communication:
    """Returns what a worker sends to average its trainable ``pieces``, 2 (P-1)/P of the bytes with P owners."""
    partitioned = shared = 0.0
    groups = OwnerSets()
    for piece in pieces:
        owners = len(piece.owners)
        if owners < 2:
            continue
        volume = ring_all_reduce_bytes(piece.numel * state[piece.name].dtype.itemsize, owners)
        groups.number(piece.owners)
        if owners == workers:
            shared += volume
        else:
            partitioned += volume
    trainable = sum(tensor.nbytes for tensor in state.values() if tensor.kind == "parameter" and tensor.requires_grad)
    return Communication(partitioned, shared, ring_all_reduce_bytes(trainable, workers), len(groups.sets))


def ring_all_reduce_bytes(payload: float, workers: int) -> float:
    """Returns the bytes that each of P workers sends to all-reduce ``payload`` bytes: 2 (P-1)/P of them."""
    return 2 * (workers - 1) / workers * payload
