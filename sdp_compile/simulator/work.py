"""The computation of each worker in one training step: FLOPs and bytes of parameters to update."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdp_compile.ownership.loads import flops_per_worker
from sdp_compile.ownership.owners import is_member
from sdp_compile.planning.plan import Plan
from sdp_compile.simulator.cluster import Cluster


@dataclass(frozen=True)
class Work:
    """Seconds of computation of a worker in one step."""

    forward: float
    backward: float
    update: float

    @property
    def total(self) -> float:
        """Seconds of forward, backward and update."""
        return self.forward + self.backward + self.update


@dataclass(frozen=True)
class Flops:
    """FLOPs of each worker in one step."""

    forward: NDArray[np.float64]
    backward: NDArray[np.float64]

    @property
    def total(self) -> NDArray[np.float64]:
        """FLOPs of forward and backward."""
        return self.forward + self.backward


def training_flops(plan: Plan) -> Flops:
    """Returns each worker's FLOPs; backward computes the gradients of inputs and of weights, each as costly as forward.

    Under backward masking, forward and input gradients are those of the full model, and only the weight gradients are
    restricted to what a worker owns.
    """
    owned = flops_per_worker(plan.work, plan.families, plan.ownership, plan.workers)
    if plan.masking == "forward":
        return Flops(owned, 2 * owned)
    dense = np.full(plan.workers, sum(term.flops for term in plan.work))
    return Flops(dense, dense + owned)


def work_of(plan: Plan, rank: int, flops: Flops, cluster: Cluster, sharded: bool) -> Work:
    """Returns the seconds that ``rank`` computes. With ``sharded``, it updates only its shard of what it owns.

    Packing gradients counts as backward, and so does adding them up, which takes as long as copying. So does unpacking
    their averages, which with ``sharded`` are values after the update.
    """
    shared, added, fetched = _exchanged(plan, rank)
    return Work(
        cluster.computing(float(flops.forward[rank])),
        cluster.computing(float(flops.backward[rank])) + cluster.copying(added + (shared if sharded else 2 * shared)),
        cluster.updating(_shard(plan, rank) if sharded else plan.memory(rank).gradients)
        + cluster.copying(fetched + (shared if sharded else 0)),
    )


def state_of(plan: Plan, rank: int, sharded: bool) -> float:
    """Returns the bytes of parameters, gradients and AdamW state that ``rank`` holds after backward."""
    memory = plan.memory(rank)
    return memory.parameters + 3 * _shard(plan, rank) if sharded else memory.total


def _exchanged(plan: Plan, rank: int) -> tuple[float, float, float]:
    """Returns the bytes of what ``rank`` owns together with others, adds up, and fetches under backward masking."""
    shared = added = fetched = 0.0
    for name, tensor in plan.state.items():
        if tensor.kind == "parameter" and tensor.requires_grad:
            for piece in plan.pieces(name):
                nbytes = piece.numel * tensor.dtype.itemsize
                if not is_member(rank, piece.owners):
                    fetched += nbytes if plan.masking == "backward" else 0
                elif len(piece.owners) > 1:
                    shared += nbytes
                    added += nbytes * (len(piece.owners) - 1) / len(piece.owners)
    return shared, added, fetched


def _shard(plan: Plan, rank: int) -> float:
    """Returns the bytes of the parameters whose gradients and optimizer state ``rank`` holds."""
    return sum(
        piece.numel * tensor.dtype.itemsize / len(piece.owners)
        for name, tensor in plan.state.items()
        if tensor.kind == "parameter" and tensor.requires_grad
        for piece in plan.pieces(name)
        if is_member(rank, piece.owners)
    )
