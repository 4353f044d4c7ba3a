"""State travels in batches: pieces come from their first owner, and full tensors equal plain slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdp_compile.planning.holdings import Holdings
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.comm import transfer
from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.comm.transfer import Request, assemble, batches
from tests.distributed import run_workers
from tests.runtime.connected import WORKERS, subnet
from tests.runtime.stub import SCATTERED, capture_of, network, plan_of

CHUNK_BYTES = 200
"""Small, so that several batches travel."""


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("ab")), max_size=12), st.integers(1, 20))
def test_batches_are_runs_of_one_key_within_the_limit(sizes: list[tuple[int, str]], limit: int) -> None:
    cut = [sizes[batch] for batch in batches(sizes, limit)]
    assert [member for batch in cut for member in batch] == sizes
    for number, batch in enumerate(cut):
        assert len({key for _, key in batch}) == 1
        assert len(batch) == 1 or sum(nbytes for nbytes, _ in batch) <= limit
        if number and cut[number - 1][0][1] == batch[0][1]:
            assert sum(nbytes for nbytes, _ in (*cut[number - 1], batch[0])) > limit, "no batch is closed early"


def random_values(plan: Plan) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(-99, 99, tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in plan.state.items()
    }


def mark(value: Tensor, rank: Any) -> Tensor:
    """Makes the values of one rank recognisable."""
    return value + 1000 * rank


def first_owners(plan: Plan, name: str) -> Tensor:
    masks = torch.stack([plan.mask(name, rank) for rank in range(WORKERS)])
    return masks.int().argmax(0)


def held(holdings: Holdings, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """This worker's marked slices, selected by the masks of the plan."""
    result = {}
    for name, value in values.items():
        value = mark(value, holdings.rank)
        shape = holdings.shape(name)
        if shape is not None:
            is_sliced = holdings.lowering == "sliced"
            result[name] = (value[holdings.plan.mask(name, holdings.rank)] if is_sliced else value).reshape(shape)
    return result


def assembled(rank: int, lowering: str) -> Any:
    transfer.batches.__defaults__ = (CHUNK_BYTES,)
    module, groups = subnet(rank, SCATTERED, lowering), Groups()
    groups.create(module.plan.levels)
    tensors = held(module.holdings, random_values(module.plan))
    requests = [Request(name, name, tensor.dtype) for name, tensor in module.plan.state.items()]
    found = []
    for wanted in (None, (0,), (2,)):
        found.append(assemble(requests, tensors, module.holdings, groups, wanted=wanted, device=torch.device("cpu")))
    return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("lowering", ["sliced", "masked"])
def test_full_tensors_are_assembled_from_first_owners(lowering: str) -> None:
    plan = plan_of(capture_of(network()), SCATTERED, WORKERS)
    values = random_values(plan)
    for rank, (for_all, for_zero, for_two) in enumerate(run_workers(assembled, WORKERS, lowering)):
        assert not for_zero or rank == 0
        assert not for_two or rank == 2
        for full in (for_all, for_zero or for_all, for_two or for_all):
            assert list(full) == list(values)
            for name, value in values.items():
                assert torch.equal(full[name], mark(value, first_owners(plan, name)).to(value.dtype)), name
