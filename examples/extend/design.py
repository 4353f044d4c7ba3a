"""A design of one's own: python examples/extend/design.py"""

from collections.abc import Sequence

import torch
from torch import nn

import sdp_compile as sdp


@sdp.design("striped")
def striped(placements: Sequence[sdp.Placement]) -> list[sdp.Ownership]:
    """Neighbouring units have different owners: unit u is owned by the cells u, u + 1, ..., u + share - 1 (mod K)."""
    return [sdp.Ownership.from_runs(stripes(placement)) for placement in placements]


def stripes(placement: sdp.Placement):
    """Yields (1, owners) for each unit. With fewer units than cells, spreading them leaves no cell without a unit."""
    enough = placement.units >= placement.slots
    starts = range(placement.units) if enough else placement.slot_of_units().tolist()
    for start, share in zip(starts, placement.shares.tolist(), strict=True):
        yield 1, placement.owners(range(start, start + share))


if __name__ == "__main__":
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    policy = sdp.NeuronPolicy(coverage=0.5, design="striped")
    module = sdp.compile(model, policy, (torch.randn(2, 8),), workers=4, rank=0)
    for unit, workers in enumerate(module.plan.owners("0.weight[0]")[:5]):
        print(f"unit {unit}: workers {workers}")
