"""Owners get the bits of the first owner, whatever their dtype, in one errand or in several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdp_compile.runtime.comm.groups import Groups
from sdp_compile.runtime.levels.equalise import equalise
from sdp_compile.runtime.levels.route import Route
from tests.distributed import run_workers
from tests.runtime.comm.test_transfer import held, mark, random_values
from tests.runtime.connected import WORKERS, subnet
from tests.runtime.stub import CYCLIC, SCATTERED, capture_of, network, plan_of

pytestmark = pytest.mark.timeout(120)


def equalised(rank: int, owners: list[tuple[int, ...]], lowering: str, chunk_bytes: int) -> dict[str, Tensor]:
    module, groups = subnet(rank, owners, lowering), Groups()
    groups.create(module.plan.levels)
    tensors, changed = held(module.holdings, random_values(module.plan)), set[str]()
    half = [(name, tensor.to(torch.bfloat16)) for name, tensor in tensors.items()]  # as an optimizer's state
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    entries = [entry for pair in zip(tensors.items(), half, strict=True) for entry in pair]
    equalise(entries, module.holdings, Route(module.plan.levels, groups), changed, chunk_bytes)
    for name, tensor in half:
        mask = module.plan.mask(name, rank).reshape(tensor.shape) if lowering == "masked" else ...
        if module.plan.pieces(name)[0].owners:
            assert torch.equal(tensor[mask], tensors[name].to(torch.bfloat16)[mask])
    assert changed == {name for name, tensor in tensors.items() if not torch.equal(tensor, before[name])}
    return tensors


@pytest.mark.parametrize(("lowering", "chunk_bytes"), [("sliced", 200), ("masked", 10**6)])
@pytest.mark.parametrize("owners", [CYCLIC, SCATTERED])
def test_owners_get_the_values_of_the_first_owner(
    owners: list[tuple[int, ...]], lowering: str, chunk_bytes: int
) -> None:
    plan = plan_of(capture_of(network()), owners, WORKERS)
    for rank, tensors in enumerate(run_workers(equalised, WORKERS, owners, lowering, chunk_bytes)):
        for name, value in random_values(plan).items():
            mask = plan.mask(name, rank)
            firsts = torch.stack([plan.mask(name, other) for other in range(WORKERS)]).int().argmax(0)
            expected = mark(value, firsts).to(value.dtype)
            found = tensors[name] if lowering == "masked" else tensors[name].reshape(-1)
            assert torch.equal(found[mask] if lowering == "masked" else found, expected[mask]), name
            if lowering == "masked":  # what it does not own stays as it was
                assert torch.equal(found[~mask], mark(value, rank)[~mask]), name
