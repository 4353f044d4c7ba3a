"""What a worker pays: memory, forward FLOPs and communication, exact where they can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.owners import OwnerSets, Ownership
from sdp_compile.planning.families import CutFamily
from sdp_compile.structure.families import Family, FlopTerm

if TYPE_CHECKING:  # policies come this way too, and a policy that cannot be is refused before torch is loaded
    from sdp_compile.ir.program import StateTensor

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


def flops_per_worker(
    work: Iterable[FlopTerm], families: Iterable[Family | CutFamily], ownership: Mapping[str, Ownership], workers: int
) -> NDArray[np.float64]:
    """The forward FLOPs of each worker: those of cut axes in proportion to what it keeps, none for dropped blocks."""
    share: dict[str, NDArray[np.float64]] = {}
    result = np.zeros(workers)
    for family in families:
        if family.name not in ownership:
            continue
        if family.kind == "axis":
            share[family.name] = ownership[family.name].loads(np.ones(family.units), workers) / family.units
        elif family.unit_flops:
            result += ownership[family.name].loads(family.unit_flops, workers) - sum(family.unit_flops)
    for term in work:
        scaled = np.full(workers, term.flops)
        for axis in term.axes:
            scaled *= share.get(axis, 1.0)
        result += scaled
    return result


def ring_all_reduce_bytes(payload: float, workers: int) -> float:
    """Bytes that each of ``workers`` sends to all-reduce ``payload`` bytes: twice (P-1)/P of them."""
    return 2 * (workers - 1) / workers * payload


def size(nbytes: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1024
    return f"{nbytes:.1f} GiB"
