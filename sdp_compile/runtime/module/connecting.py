"""Connects a module with the modules of the other workers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.optimizer.guard import install_optimizer_guard
from sdp_compile.runtime.peers import Peers
from sdp_compile.runtime.subnetwork import Subnetwork


def connect(
    module: Subnetwork,
    groups: Groups,
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    comm_dtype: torch.dtype | None = None,
    check_finite: bool = False,
    reduction: str = "mean",
    broadcast_from: int | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Connects a module with its peers, so that they train together, and hooks all optimizer steps. Collective.

    Args:
        module: This worker's module.
        groups: The workers' process groups.
        bucket_bytes: Upper bound of the size of one gradient reduction in bytes.
        comm_dtype: The dtype in which gradients travel; by default their own.
        check_finite: Whether a gradient that is infinite or NaN on any worker is an error on all.
        reduction: How the owners' gradients make up a unit's: ``"mean"``, ``"sum"`` or ``"tokens"``.
        broadcast_from: The worker whose ``values`` all workers start from, and that reports it if they had others; None
            for each piece's first owner.
        values: The full tensors of the original model by canonical name.

    Raises:
        DistributedError: If the process group has another size or rank than the module's plan.
    """
    install_optimizer_guard()
    vars(module)["peers"] = peers = Peers(
        module,
        module.holdings,
        groups,
        module.number,
        bucket_bytes,
        comm_dtype,
        check_finite,
        reduction,
        broadcast_from,
        values,
    )
    if peers.differing and module.rank == broadcast_from:
        warnings.warn(
            f"The ranks called sdp.compile() with different initial values: {len(peers.differing)} of "
            f"{len(module.plan.state)} parameters and buffers differ, the first is {peers.differing[0]!r}. All have "
            f"the values of rank {broadcast_from} now. To keep each unit's first owner's values instead, pass "
            "broadcast_from=None.",
            stacklevel=3,
        )
