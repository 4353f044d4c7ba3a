"""The gradients that a worker averages with nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.sharding.gradient import local_gradient


class Named(Protocol):
    """A bucket that a worker averages with others."""

    @property
    def names(self) -> Sequence[str]:
        """The parameters of its pieces."""


def own_regions(holdings: Holdings, buckets: Sequence[Named]) -> dict[str, list[Region] | None]:
    """Returns where the parts of a worker's parameters lie that are in no bucket; None for a whole parameter.

    Args:
        holdings: Which tensors the worker holds.
        buckets: Its buckets.
    """
    plan, rank = holdings.plan, holdings.rank
    shared = {name for bucket in buckets for name in bucket.names}
    result: dict[str, list[Region] | None] = {}
    for name, tensor in plan.state.items():
        if tensor.kind == "parameter" and name in shared:
            pieces = [piece for piece in plan.pieces(name) if piece.owners == (rank,) and piece.numel]
            result[name] = [holdings.region(piece) for piece in pieces]
        elif tensor.kind == "parameter":
            result[name] = None
    return result


@torch.no_grad()
def multiply(regions: Mapping[str, list[Region] | None], parameters: Mapping[str, nn.Parameter], factor: float) -> None:
    """Multiplies regions of what this worker has accumulated in ``.grad``.

    Args:
        regions: The regions by parameter; None for all of it.
        parameters: The parameters by name.
        factor: The factor.
    """
    if factor == 1:
        return
    with torch._C.DisableTorchFunctionSubclass():
        for name, own in regions.items():
            gradient = local_gradient(parameters[name]) if name in parameters else None
            if gradient is None:
                continue
            if own is None:
                gradient.mul_(factor)
            for region in own or ():
                region.write(gradient, region.read(gradient) * factor)
