"""Eight and sixteen workers on several nodes: the original model's gradients, the same bits on all owners."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdp_compile.ownership.levels import Level
from sdp_compile.planning.plan import Plan
from sdp_compile.planning.regions import Region
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.module.connecting import connect
from tests.distributed import run_workers
from tests.runtime.connected import gradients, loss_of
from tests.runtime.levels.nodes import cyclic, plan_on_nodes, subnet_on_nodes
from tests.runtime.stub import Subnet, batch, network, oracle_gradients

BUCKET_BYTES = 300
"""Small, so that there are several rounds."""

IN_NODE, BETWEEN = True, False
CASES = {
    "one node": ((8, 8, 4, 8), [("exchange", 8, IN_NODE)]),
    "two workers of each class": ((8, 4, 2, 8), [("class", 2, IN_NODE), ("exchange", 4, IN_NODE)]),
    "all classes in each node": ((16, 8, 4, 8), [("exchange", 8, IN_NODE), ("class", 2, BETWEEN)]),
    "a node is one class": ((16, 4, 2, 4), [("class", 4, IN_NODE), ("exchange", 4, BETWEEN)]),
    "three levels": ((16, 2, 1, 2), [("class", 2, IN_NODE), ("class", 4, BETWEEN), ("exchange", 2, BETWEEN)]),
    "classes that cross nodes": ((16, 8, 4, 4), [("class", 2, BETWEEN), ("exchange", 8, BETWEEN)]),
}


def connected(rank: int, workers: int, owners: list[tuple[int, ...]], node_size: int, library: bool) -> Subnet:
    if library:  # as with NCCL; Gloo has these collectives, too
        Groups.has_library = lambda self, device: True  # type: ignore[method-assign]
    module = subnet_on_nodes(rank, owners, workers, node_size)
    connect(module, Groups(), bucket_bytes=BUCKET_BYTES)
    return module


def averaged(rank: int, workers: int, owners: list[tuple[int, ...]], node_size: int, library: bool) -> Any:
    module = connected(rank, workers, owners, node_size, library)
    with module.peers.no_sync():
        loss_of(module, rank).backward()
    traffic = module.peers.groups.traffic
    traffic.reset()
    loss_of(module, rank + 100).backward()
    return gradients(module), traffic.sent["gradients"], traffic.calls["gradients"]


def sent(plan: Plan, rank: int) -> float:
    """What the plan's formula says, with what fills up the owners' chunks."""
    buckets = plan.buckets(rank, BUCKET_BYTES)
    padding = sum(2 * (len(b.owners) - 1) / len(b.owners) * b.padding_bytes for b in buckets)
    return plan.communication(rank).total + padding


def described(level: Level) -> tuple[str, int, bool]:
    return level.kind, level.size, level.in_node


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_original_s_and_bytes_the_plan_s(case: str, library: bool) -> None:
    (workers, slots, share, node_size), levels = CASES[case]
    owners = cyclic(workers, slots, share, node_size)
    net = network()
    plan = plan_on_nodes(net, owners, workers, node_size)
    assert [described(level) for level in plan.levels] == levels
    found = run_workers(averaged, workers, workers, owners, node_size, library, limit=200)
    expected = oracle_gradients(net, plan, {rank: [batch(rank), batch(rank + 100)] for rank in range(workers)})
    bits: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
    for rank, (own, nbytes, calls) in enumerate(found):
        assert nbytes == pytest.approx(sent(plan, rank))
        assert calls == plan.collectives(rank, BUCKET_BYTES)
        for name, gradient in own.items():
            if name in ("frozen", "idle"):
                continue
            mask = plan.mask(name, rank)
            torch.testing.assert_close(gradient.reshape(-1), expected[name][mask], rtol=1e-10, atol=1e-10)
            for piece in plan.pieces(name):
                if rank in piece.owners:
                    values = Region(plan.local_index(piece, rank)).read(gradient)
                    assert torch.equal(values, bits.setdefault((name, piece.owners), values)), "not the same bits"
