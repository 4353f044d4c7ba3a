"""One order of collectives on all workers, whatever they compute and however slowly."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import combinations
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdp_compile import NeuronPolicy, sdp_compile
from sdp_compile.planning.plan import Plan
from sdp_compile.policies import Policy
from sdp_compile.runtime.comm.issuer import InOrder
from sdp_compile.structure.families import Structure
from tests.distributed import run_workers
from tests.runtime.models import batch, build, loss_of

pytestmark = pytest.mark.timeout(150)
STEPS = 50


@given(st.permutations(range(6)), st.integers(0, 6))
def test_positions_are_issued_in_order_as_soon_as_they_can_be(ready: list[int], count: int) -> None:
    issued: list[int] = []
    in_order = InOrder(6, issued.append)
    for number in range(count):
        in_order.ready(ready[number])
        known = set(ready[: number + 1])
        assert issued == list(range(next(position for position in range(7) if position not in known)))
    in_order.rest()
    assert issued == list(range(6))


class RandomOwners(Policy):
    """Every unit belongs to one to four random workers; every worker owns a unit of every family."""

    name: ClassVar[str] = "random_owners"

    def partition(self, structure: Structure, workers: int) -> Mapping[str, Sequence[Collection[int]]]:
        chosen = random.Random(11)
        result = {}
        for family in structure.families:
            inner = family.kind == "axis" and "branches" in family.name
            if inner if self.level == "neuron" else family.name == "blocks":
                owners = [chosen.sample(range(workers), chosen.randint(1, 4)) for _ in range(family.units)]
                for worker in range(workers):
                    owners[worker % family.units] = sorted({*owners[worker % family.units], worker})
                result[family.name] = owners
        return result


CASES: dict[str, tuple[int, Callable[[], Policy], list[str]]] = {
    "random neurons": (6, lambda: RandomOwners(level="neuron"), ["exchange"]),
    "random blocks": (6, lambda: RandomOwners(level="block"), ["exchange"]),
    "all classes in each of two nodes": (8, lambda: NeuronPolicy(node_size=4, slots=4), ["exchange", "class"]),
    "two nodes of one class": (8, lambda: NeuronPolicy(node_size=4, slots=2), ["class", "exchange"]),
}
"""Workers, policy, and the kinds of the levels."""


def trained(rank: int, case: str) -> Any:
    warnings.simplefilter("ignore")
    module = sdp_compile(build("cnn"), CASES[case][1](), (batch("cnn", 0),), bucket_bytes=1500)
    assert [level.kind for level in module.plan.levels] == CASES[case][2]
    engine, chance = module.peers.engine, random.Random(100 + rank)

    def delayed(gradient: Tensor) -> None:
        if chance.random() < 0.15:
            time.sleep(0.004 * chance.random())

    for parameter in module.parameters():
        parameter.register_hook(delayed)
    during = []
    start = engine.reduction.start

    def recorded(bucket: Any, flat: Tensor) -> None:
        during.append(torch._C._current_autograd_node() is not None)
        start(bucket, flat)

    engine.reduction.start = recorded
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    issued = []
    for step in range(STEPS):
        optimizer.zero_grad()
        x = batch("cnn", 100 * rank + step)
        # Now and then a worker has no gradient for most of its parameters.
        loss = module.head.bias.square().sum() if chance.random() < 0.1 else loss_of("cnn", module(x), x)
        loss.backward()
        optimizer.step()
        issued.append(list(engine.issued))
    values = {name: value.detach().clone() for name, value in module.named_parameters()}
    return module.plan.to_json(), issued, during, values


@pytest.mark.parametrize("case", CASES)
def test_owners_and_delays_of_any_kind_keep_one_order(case: str) -> None:
    workers = CASES[case][0]
    found = run_workers(trained, workers, case)
    plan = Plan.from_json(found[0][0])
    expected = [[bucket.number for bucket in plan.buckets(rank, 1500)] for rank in range(workers)]
    assert len({tuple(numbers) for numbers in expected}) > 1
    for rank, (_, issued, during, _) in enumerate(found):
        assert issued == [expected[rank]] * STEPS
        assert issued[0] == sorted(issued[0])
        assert any(during)  # and not only at the end
    for one, other in combinations(range(workers), 2):
        for mine, theirs in zip(found[one][1], found[other][1], strict=True):
            common = set(mine) & set(theirs)
            assert [n for n in mine if n in common] == [n for n in theirs if n in common]
    for name in plan.state:
        whole = {}
        for rank, (_, _, _, values) in enumerate(found):
            if name in values:
                whole[rank] = torch.zeros(plan.state[name].shape, dtype=values[name].dtype)
                whole[rank][plan.mask(name, rank)] = values[name].reshape(-1)
        for piece in plan.pieces(name) if whole else ():
            grid = torch.meshgrid(*map(torch.from_numpy, piece.index), indexing="ij")
            assert all(torch.equal(whole[rank][grid], whole[piece.owners[0]][grid]) for rank in piece.owners)
