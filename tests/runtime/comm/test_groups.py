"""Process groups of owners: numbered within the given group, with errors that say who failed and why."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sdp_compile.errors import DistributedError
from sdp_compile.ownership.levels import Level, Levels
from sdp_compile.runtime.comm import groups as making
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.module.connecting import connect
from tests.distributed import WorkerFailed, run_workers
from tests.runtime.connected import WORKERS, compare, connected, gradients, loss_of
from tests.runtime.stub import CYCLIC, SCATTERED, Subnet, batch, capture_of, network, plan_of
from tests.versions import BEFORE_2_12

pytestmark = pytest.mark.timeout(120)


def uneven(rank: int) -> Any:
    module = connected(rank, CYCLIC)
    for step in range(2 if rank == 3 else 3):
        module.zero_grad()
        loss_of(module, rank + step).backward()
    return "ended"


def test_uneven_numbers_of_batches_are_an_error_that_says_so() -> None:
    with pytest.raises(WorkerFailed) as raised:
        run_workers(uneven, WORKERS, timeout=8)
    assert 3 not in raised.value.failures
    assert any("DistributedError" in text and "Join" in text for text in raised.value.failures.values())
    assert any("what the workers do next among workers" in text for text in raised.value.failures.values())


def on_a_subgroup(rank: int) -> Any:
    members = [0, 1, 2, 4]
    group = dist.new_group(members)
    if rank not in members:
        with pytest.raises(DistributedError, match="not a member"):
            Groups(group)
        return None
    position = dist.get_rank(group)
    net = network()
    capture = capture_of(net)
    found = []
    for owners in (SCATTERED, CYCLIC):  # a second plan needs other groups, and some of the same
        module = Subnet(net, plan_of(capture, owners, WORKERS), position, capture)
        connect(module, Groups(group))
        loss_of(module, position).backward()
        found.append(gradients(module))
    return found


@pytest.mark.xfail(BEFORE_2_12, reason="torch 2.11 names groups so that members of overlapping ones would not meet")
def test_workers_are_numbered_within_the_group() -> None:
    found = [own for own in run_workers(on_a_subgroup, 5) if own is not None]
    for number, owners in enumerate((SCATTERED, CYCLIC)):
        compare(owners, [own[number] for own in found], {rank: [batch(rank)] for rank in range(WORKERS)})


def leaves(rank: int) -> None:
    module = connected(rank, CYCLIC, bucket_bytes=64)
    loss_of(module, rank).backward()
    module.zero_grad()
    if rank == 3:
        module.up.weight.register_hook(lambda gradient: (_ for _ in ()).throw(SystemExit(1)))
    loss_of(module, rank).backward()


def test_a_worker_that_leaves_in_mid_step() -> None:
    start = time.monotonic()
    with pytest.raises(WorkerFailed) as raised:
        run_workers(leaves, WORKERS, timeout=8)
    assert time.monotonic() - start < 60
    texts = raised.value.failures
    assert any("DistributedError" in texts[rank] for rank in range(3))
    named = [re.search(r"among workers ([\d, ]+) failed on worker (\d)", text) for text in texts.values()]
    assert all("3" in match[1] and match[2] != "3" for match in named if match) and any(named)


PLANS = [[(0, 1), (2, 3), (4, 5)], [(0, 1), (2, 4), (3, 5)], [(0, 2), (1, 3), (4, 5)]]
"""The groups of three plans; each shares one with another, and the last one joins workers that needed other ones."""


def some_groups_twice(rank: int, members_make_groups: bool) -> Any:
    if not members_make_groups:  # as before torch 2.12, where all ranks make every group
        making.__dict__["_names_are_common"] = lambda: False
    groups, result = Groups(), []
    for pairs in PLANS:
        levels = Levels((Level("exchange", tuple(pairs), True),), 6, 6, ())
        groups.create(levels)
        own = levels[0].group(rank)
        total = torch.tensor([2.0**rank])
        dist.all_reduce(total, group=groups.raw_group_of(own))
        result.append((own, float(total)))
    return result


@pytest.mark.parametrize("members_make_groups", [True, False])
def test_plans_may_share_some_groups_of_a_level(members_make_groups: bool) -> None:
    for rank, found in enumerate(run_workers(some_groups_twice, 6, members_make_groups, timeout=20)):
        for pairs, (own, total) in zip(PLANS, found, strict=True):
            assert own in pairs and rank in own
            assert total == sum(2.0**member for member in own)
