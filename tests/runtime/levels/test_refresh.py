"""Backward masking: what the others own is fetched after each step, and when a state is loaded; never otherwise."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from sdp_compile import BlockPolicy, NeuronPolicy, ShardedOptimizer, sdp_compile
from tests.distributed import run_workers
from tests.runtime.models import batch, build, loss_of

pytestmark = pytest.mark.timeout(120)
WORKERS = 4
POLICIES: dict[str, Any] = {
    "neuron": lambda: NeuronPolicy(masking="backward"),
    "block": lambda: BlockPolicy(masking="backward"),
    "one owner": lambda: NeuronPolicy(masking="backward", replicas=1),
    "all": lambda: NeuronPolicy(masking="backward", axes="all", scope="all", replicas=3),
}


def differing(module: Any) -> list[str]:
    """What this worker holds of parameters that is not what their owners hold."""
    full, tensors = module.full_state_dict(), {**dict(module.named_parameters()), **dict(module.named_buffers())}
    held = [one for one in module.holdings.held() if one.source in full]
    return [one.name for one in held if not torch.equal(tensors[one.name], one.region.read(full[one.source]))]


def training(rank: int, policy: str, lowering: Any, sharded: bool) -> Any:
    module = sdp_compile(
        build("transformer", seed=rank),
        POLICIES[policy](),
        (batch("transformer", 0),),
        lowering=lowering,
        bucket_bytes=2000,
    )
    assert not differing(module)
    traffic = module.peers.groups.traffic
    optimizer: Any = (
        ShardedOptimizer(module, torch.optim.AdamW, lr=0.01)
        if sharded
        else torch.optim.AdamW(module.parameters(), lr=0.01)
    )
    for step in range(3):
        x = batch("transformer", 10 * rank + step)
        before = traffic.calls["refresh"]
        loss_of("transformer", module(x), x).backward()
        with torch.no_grad():
            module(x)
        module.eval()(x)
        module.train()
        assert traffic.calls["refresh"] == before  # neither in forward, in eval mode, nor in backward
        traffic.reset()
        optimizer.step()
        optimizer.zero_grad()
        assert traffic.sent["refresh"] == module.plan.communication(rank).refresh
    assert not differing(module)
    state = copy.deepcopy(module.state_dict())
    state.update((key, value + 1) for key, value in module.state_dict().items() if "weight" in key)
    module.load_state_dict(state)
    assert not differing(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    assert differing(module) or lowering == "masked"  # there the loop has changed what others own alike
    module.refresh_parameters()
    assert not differing(module)
    module.load_full_state_dict(build("transformer", seed=7).state_dict())
    assert not differing(module)
    with torch.no_grad():
        return module.eval()(batch("transformer", 3))


CASES = [
    ("neuron", "sliced", True),
    ("all", "sliced", False),
    ("one owner", "sliced", True),
    ("block", "masked", False),
]


@pytest.mark.parametrize(("policy", "lowering", "sharded"), CASES)
def test_workers_compute_with_what_the_owners_hold(policy: str, lowering: str, sharded: bool) -> None:
    outputs = run_workers(training, WORKERS, policy, lowering, sharded)
    expected: Tensor = build("transformer", seed=7).eval()(batch("transformer", 3))
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)


def materialised(rank: int) -> list[str]:
    empty = build("transformer").to("meta")
    empty.head.weight = empty.embed.weight  # moving a module to the meta device unties it
    module = sdp_compile(empty, POLICIES["neuron"](), (batch("transformer", 0).to("meta"),))
    assert all(buffer.is_meta for buffer in module.unowned.values())
    module.materialize(seed=rank)  # made equal all the same
    return differing(module)


def test_a_module_from_the_meta_device_has_all_of_the_model() -> None:
    assert run_workers(materialised, 2) == [[], []]


@pytest.mark.parametrize("policy", list(POLICIES))
def test_the_bytes_that_are_sent(policy: str) -> None:
    """Each value goes once to each worker that computes with it and does not own it."""
    x = batch("transformer", 0)
    plan = sdp_compile(build("transformer"), POLICIES[policy](), (x,), workers=WORKERS, rank=0).plan
    total = sum(plan.communication(rank).refresh for rank in range(WORKERS))
    missing = sum(int((~plan.mask(name, rank)).sum()) * 8 for name in plan.state for rank in range(WORKERS))
    assert total == missing > 0
    sent = [plan.communication(rank).refresh for rank in range(WORKERS)]
    assert max(sent) < 1.25 * total / WORKERS
