"""The stub's subnetworks joined in one process group, and what they must compute together."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.module.connecting import connect
from tests.runtime.stub import Subnet, batch, capture_of, network, oracle_gradients, plan_of

WORKERS = 4


def subnet(
    rank: int, owners: list[tuple[int, ...]], lowering: str = "sliced", seed: int = 0, workers: int = WORKERS
) -> Subnet:
    """One worker's subnetwork without the others."""
    net = network(seed)
    capture = capture_of(net)
    return Subnet(net, plan_of(capture, owners, workers), rank, capture, lowering)


def connected(
    rank: int,
    owners: list[tuple[int, ...]],
    lowering: str = "sliced",
    seed: int = 0,
    workers: int = WORKERS,
    **options: Any,
) -> Subnet:
    """This process's subnetwork, joined with those of the other processes."""
    module = subnet(rank, owners, lowering, seed, workers)
    connect(module, Groups(), **options)
    return module


def loss_of(module: Subnet, seed: int) -> Tensor:
    x, y = batch(seed)
    return F.cross_entropy(module(x), y)


def gradients(module: Subnet) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}


def full_of(plan: Plan, rank: int, name: str, value: Tensor) -> Tensor:
    """A worker's values in a full tensor, zeros elsewhere."""
    result = torch.zeros(plan.state[name].shape, dtype=value.dtype)
    result[plan.mask(name, rank)] = value.reshape(-1)
    return result


def compare(
    owners: list[tuple[int, ...]],
    found: list[dict[str, Tensor | None]],
    batches: Any,
    masked: bool = False,
    tolerance: float = 1e-10,
) -> None:
    """Gradients of all workers against the original's: means over the owners, bitwise equal on all of them."""
    net = network()
    plan = plan_of(capture_of(net), owners, WORKERS)
    expected = oracle_gradients(net, plan, batches)
    for rank, own in enumerate(found):
        for name, gradient in own.items():
            if name in ("frozen", "idle"):
                assert gradient is None
                continue
            mask = plan.mask(name, rank)
            assert gradient is not None
            values = gradient[mask] if masked else gradient.reshape(-1)
            torch.testing.assert_close(values, expected[name][mask], rtol=tolerance, atol=tolerance)
    for name in expected:  # bitwise equal on all owners
        for piece in plan.pieces(name):
            if not masked and found[0][name] is not None:
                common = torch.stack([full_of(plan, rank, name, found[rank][name]) for rank in piece.owners])
                inside = torch.zeros(expected[name].shape, dtype=torch.bool)
                inside[torch.meshgrid(*map(torch.from_numpy, piece.index), indexing="ij")] = True
                assert (common[:, inside] == common[0, inside]).all()
