"""Complex parameters trained by three processes, against the original eager model with masked parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sdp_compile import NeuronPolicy, ShardedOptimizer, clip_grad_norm_, sdp_compile
from sdp_compile.planning.plan import Plan
from tests.complex_models import MODELS
from tests.distributed import run_workers
from tests.oracle import randomise, scalar, tensors_of

pytestmark = pytest.mark.timeout(120)
WORKERS = 3
STEPS = 3
NAMES = ("modReLU", "convolutions")
POLICIES = {
    "forward": NeuronPolicy(replicas=2),
    "backward": NeuronPolicy(replicas=2, masking="backward"),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    cls, x = MODELS[name]
    return randomise(cls()), x


def batch(x: Tensor, rank: int, step: int) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(10 * step + rank))


def loss_of(output: Any, x: Tensor) -> Tensor:
    """With a penalty on the gradient of the input."""
    loss = scalar(tensors_of(output))
    (of_x,) = torch.autograd.grad(loss, x, create_graph=True)
    return loss + of_x.abs().square().mean()


def train(rank: int, name: str, policy: str, sharded: bool) -> Any:
    model, x = build(name)
    module = sdp_compile(model, POLICIES[policy], (x,))
    adam: Any = (
        ShardedOptimizer(module, torch.optim.Adam, lr=0.01)
        if sharded
        else torch.optim.Adam(module.parameters(), lr=0.01)
    )
    norms = []
    for step in range(STEPS):
        own = batch(x, rank, step).requires_grad_()
        loss_of(module(own), own).backward()
        norms.append(clip_grad_norm_(module, 1.0))
        adam.step()
        adam.zero_grad()
    state = module.full_optimizer_state_dict(adam)["state"]
    moments = {key: value["exp_avg"] for key, value in state.items()}
    return module.full_state_dict(), moments, norms


def trained(name: str, policy: str, plan: Plan) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """The same with the original model: each element's mean over its owners of their masked gradients."""
    model, x = build(name)
    parameters = dict(model.named_parameters())
    adam = torch.optim.Adam(parameters.values(), lr=0.01)
    norms = []
    for step in range(STEPS):
        for parameter in parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        for rank in range(WORKERS):
            masks = {key: plan.mask(key, rank) for key in parameters}
            leaves = {key: value.detach().clone().requires_grad_() for key, value in parameters.items()}
            masked = {key: leaf * masks[key] if policy == "forward" else leaf for key, leaf in leaves.items()}
            own = batch(x, rank, step).requires_grad_()
            loss_of(functional_call(model, masked, (own,)), own).backward()
            for key, parameter in parameters.items():
                owners = sum(plan.mask(key, worker).double() for worker in range(WORKERS))
                parameter.grad += leaves[key].grad * masks[key] / owners
        norms.append(nn.utils.clip_grad_norm_(parameters.values(), 1.0))
        adam.step()
    moments = {key: adam.state[parameter]["exp_avg"] for key, parameter in parameters.items()}
    return dict(model.state_dict()), moments, norms


@pytest.mark.parametrize("sharded", [False, True], ids=["adam", "sharded"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NAMES)
def test_training_equals_the_original_with_averaged_gradients(name: str, policy: str, sharded: bool) -> None:
    model, x = build(name)
    plan = sdp_compile(model, POLICIES[policy], (x,), workers=WORKERS, rank=0).plan
    state, moments, norms = trained(name, policy, plan)
    assert any(not plan.mask(key, 0).all() and value.is_complex() for key, value in state.items())
    for found_state, found_moments, found_norms in run_workers(train, WORKERS, name, policy, sharded):
        torch.testing.assert_close(found_norms, norms, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(dict(found_state), state, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found_moments, moments, rtol=1e-9, atol=1e-12)
