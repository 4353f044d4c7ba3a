"""A policy of one's own: python examples/extend/policy.py"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn

import sdp_compile as sdp


@sdp.register_policy("tapered")
class TaperedPolicy(sdp.Policy):
    """Axes near the input have many owners, axes near the output few."""

    first: float = 0.75
    last: float = 0.25

    def partition(self, structure: sdp.Structure, workers: int) -> Mapping[str, Sequence[Collection[int]]]:
        axes = disjoint(structure)
        if not axes:
            raise sdp.NothingToPartition("TaperedPolicy found no axis to cut. Use BlockPolicy, or coverage=1.0.")
        deepest = max(axis.depth for axis in axes) or 1
        coverage = {axis.name: self.first + (self.last - self.first) * axis.depth / deepest for axis in axes}
        return {axis.name: owners(axis.units, workers, coverage[axis.name]) for axis in axes}


def disjoint(structure: sdp.Structure) -> list[sdp.Family]:
    """Axes of which no two meet in one parameter, so that every element has an owner; outside the residual stream."""
    chosen: list[sdp.Family] = []
    for axis in structure.axes:
        pairs = [frozenset({axis.name, other}) for other in (axis.name, *(family.name for family in chosen))]
        if axis.name not in structure.residual and structure.conflicts.isdisjoint(pairs):
            chosen.append(axis)
    return chosen


def owners(units: int, workers: int, coverage: float) -> list[set[int]]:
    """For each unit a run of workers; with few units the runs are longer, so that no worker is left without one."""
    count = min(workers, max(round(coverage * workers), -(-workers // units)))
    return [{(unit * workers // units + step) % workers for step in range(count)} for unit in range(units)]


if __name__ == "__main__":
    layers = [nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(3)]
    module = sdp.compile(nn.Sequential(*layers), "tapered", (torch.randn(2, 8),), workers=4, rank=0)
    for family in module.plan.families:
        print(family.name, module.plan.owners(family.name)[0])
