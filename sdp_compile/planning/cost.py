"""What a worker pays in memory and communication, in exact bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from sdp_compile.ir.program import StateTensor
from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.owners import OwnerSets

ADAMW_STEP_BYTES = 4
"""AdamW keeps one float32 step counter for each parameter beside its two moments."""


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

    ``partitioned`` and ``shared`` are the gradients of cut and of shared parameters, ``refresh`` the updated values of
    cut parameters under backward masking; ``dense`` is what data parallelism would send. ``groups`` counts the owner
    groups that the worker is a member of.
    """

    partitioned: float
    shared: float
    dense: float
    groups: int
    refresh: float = 0.0

    @property
    def total(self) -> float:
        return self.partitioned + self.shared + self.refresh


def memory(state: Mapping[str, StateTensor], shapes: Mapping[str, tuple[int, ...] | None]) -> Memory:
    """The memory of a worker that holds the tensors with these local shapes; None where it holds nothing of one."""
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
    """2 (P-1)/P of the payload for each of a worker's trainable pieces with P owners."""
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
    """Bytes that each of ``workers`` sends to all-reduce ``payload`` bytes: twice (P-1)/P of them."""
    return 2 * (workers - 1) / workers * payload
