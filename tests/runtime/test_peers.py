"""A module joins its peers: equal values at the start, and only in the process group of its plan."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdp_compile.errors import DistributedError
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.module.connecting import connect
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, connected, full_of
from tests.runtime.stub import CYCLIC, SCATTERED, Subnet, capture_of, network, plan_of

pytestmark = pytest.mark.timeout(120)


def starts_unequal(rank: int) -> Any:
    module = connected(rank, SCATTERED, seed=rank)
    return module.state_dict()


def test_start_makes_owned_values_equal_to_the_first_owners() -> None:
    found = run_workers(starts_unequal, WORKERS)
    nets = [network(rank) for rank in range(WORKERS)]
    plan = plan_of(capture_of(nets[0]), SCATTERED, WORKERS)
    for name in plan.state:
        if name == "scratch":
            continue
        for piece in plan.pieces(name):
            inside = torch.zeros(plan.state[name].shape, dtype=torch.bool)
            inside[torch.meshgrid(*map(torch.from_numpy, piece.index), indexing="ij") if piece.index else ...] = True
            first = nets[piece.owners[0]].state_dict()[name][inside]
            for rank in piece.owners:
                assert torch.equal(full_of(plan, rank, name, found[rank][name])[inside], first), (name, rank)


def too_small(rank: int) -> None:
    net = network()
    capture = capture_of(net)
    module = Subnet(net, plan_of(capture, CYCLIC, WORKERS), rank, capture)
    with pytest.raises(DistributedError, match=rf"worker {rank} of 4, but this process is rank {rank} of 3"):
        connect(module, Groups())


def test_a_process_group_smaller_than_the_plan() -> None:
    run_workers(too_small, 3)
