"""Torch's own functions for clipping see the full model's gradient, on four workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_, clip_grads_with_norm_, get_total_norm

import sdp_compile as sdp
from sdp_compile import ShardedOptimizer, sdp_compile
from sdp_compile.errors import DistributedError, SDPError
from sdp_compile.planning.plan import Plan
from tests.distributed import run_workers
from tests.runtime.full_results.residual import POLICIES, WORKERS, averaged, batch, loss_of, network

ORDERS = (1.0, 2.0, 3.0, float("inf"))
HUGE = 1e9

PARTS: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "matrices": lambda name: name.endswith("weight"),
    "half": lambda name: name.startswith(("inputs", "branches.0", "branches.1")),
}


def part(model: nn.Module, which: str) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if PARTS[which](name)]


def oracle(gradients: dict[str, Tensor], which: str, order: float) -> Tensor:
    values = torch.cat([value.reshape(-1) for name, value in gradients.items() if PARTS[which](name)])
    return torch.linalg.vector_norm(values, order)


def by_hand(parameters: Iterable[Tensor], order: float) -> Tensor:
    norms = [torch.norm(p.grad.detach(), order) for p in parameters if p.grad is not None]
    return torch.norm(torch.stack(norms), order)


def scaled(parameters: Iterable[Tensor], order: float) -> Tensor:
    """As in implementations of SAM."""
    return torch.norm(torch.stack([(1.0 * p.grad).norm(p=order) for p in parameters if p.grad is not None]), p=order)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def backward(model: Any, seed: int) -> None:
    loss_of(model(batch(seed, next(model.parameters()).dtype))).backward()


def compiled(policy: str, dtype: torch.dtype = torch.float64) -> Any:
    return sdp_compile(network(dtype), POLICIES[policy], (batch(0, dtype),))


def every_norm(rank: int) -> Any:
    models = {policy: compiled(policy) for policy in POLICIES}
    return {policy: [norms(rank, model, sharded) for sharded in (False, True)] for policy, model in models.items()}


def norms(rank: int, model: Any, sharded: bool) -> Any:
    model.zero_grad()
    optimizer = ShardedOptimizer(model, torch.optim.AdamW, lr=1e-2) if sharded else None
    backward(model, rank)
    found: dict[Any, Tensor] = {}
    for order in ORDERS:
        found["sdp", "all", order] = sdp.clip_grad_norm_(model, HUGE, order)
        for which in PARTS:
            parameters = part(model, which)
            found["clip", which, order] = clip_grad_norm_(parameters, HUGE, order)
            found["foreach", which, order] = clip_grad_norm_(parameters, HUGE, order, foreach=True)
            found["total", which, order] = get_total_norm([p.grad for p in parameters if p.grad is not None], order)
            found["hand", which, order] = by_hand(parameters, order)
            if not sharded:
                found["scaled", which, order] = scaled(parameters, order)
    assert all(type(norm) is Tensor for norm in found.values())
    norm = found["clip", "all", 2.0]
    clip_grads_with_norm_(model.parameters(), 0.25, norm)
    after = clip_grad_norm_(model.parameters(), 0.125)
    clipped = clip_grad_norm_(model.parameters(), HUGE)
    values = None if sharded else gradients(model)
    clip_grad_value_(model.parameters(), 1e-3)
    clip_grad_value_(model.parameters(), 1e-3, foreach=True)
    largest = clip_grad_norm_(model.parameters(), HUGE, float("inf"))
    if optimizer is not None:
        optimizer.step()
    return found, after, clipped, values, largest


def expected_of(policy: str) -> tuple[Plan, dict[str, Tensor]]:
    """The plan and the full model's averaged gradient, after one backward on each worker."""
    plan = sdp_compile(network(), POLICIES[policy], (batch(0),), workers=WORKERS, rank=0).plan
    return plan, averaged(plan, {rank: [rank] for rank in range(WORKERS)})


@pytest.fixture(scope="module")
def all_norms() -> list[Any]:
    return run_workers(every_norm, WORKERS, limit=240.0)


@pytest.mark.parametrize("sharded", [False, True], ids=["plain", "sharded"])
@pytest.mark.parametrize("policy", POLICIES)
def test_norms_are_those_of_the_full_model(policy: str, sharded: bool, all_norms: list[Any]) -> None:
    plan, expected = expected_of(policy)
    results = [own[policy][sharded] for own in all_norms]
    for rank, (found, after, clipped, values, largest) in enumerate(results):
        for (_, which, order), norm in found.items():
            torch.testing.assert_close(norm, oracle(expected, which, order), rtol=1e-9, atol=0)
        assert all(torch.equal(norm, results[0][0][key]) for key, norm in found.items())
        limits = torch.tensor([0.25, 0.125], dtype=torch.float64)
        torch.testing.assert_close(torch.stack([after, clipped]), limits, rtol=1e-4, atol=0)
        assert largest == 1e-3
        coefficient = 0.125 / oracle(expected, "all", 2.0)
        for name, value in (values or {}).items():
            wanted = expected[name][plan.mask(name, rank)] * coefficient
            torch.testing.assert_close(value.reshape(-1), wanted, rtol=1e-4, atol=0)


def other_cases(rank: int) -> Any:
    return refusals(rank), blocks(rank), halves(rank), within_torch_compile(rank)


@pytest.fixture(scope="module")
def others() -> list[Any]:
    return run_workers(other_cases, WORKERS, limit=240.0)


def refusals(rank: int) -> Any:
    model, head = compiled("neuron"), nn.Linear(3, 2).double()
    with model.no_sync():
        backward(model, rank)
    own = gradients(model)
    for accumulated in (clip_grad_norm_, sdp.clip_grad_norm_):
        with pytest.raises(DistributedError, match=r"no_sync\(\)"):
            accumulated(model if accumulated is sdp.clip_grad_norm_ else model.parameters(), 1.0)
    assert all(torch.equal(value, own[name]) for name, value in gradients(model).items())
    model.sync_gradients()
    synchronised = clip_grad_norm_(model.parameters(), HUGE)

    for parameter in head.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    both = [*head.parameters(), *model.parameters()]
    mixed = [clip_grad_norm_(both, HUGE, order, foreach=foreach) for order in ORDERS for foreach in (None, True)]
    head.bias.grad += rank
    with pytest.raises(DistributedError, match="differ between workers"):
        clip_grad_norm_(both, 1.0)
    with pytest.raises(SDPError, match="order 1"):
        torch.norm(torch.stack([torch.norm(p.grad, 1) for p in model.parameters()]), 2)
    with pytest.raises(SDPError, match="positive"):
        clip_grad_norm_(model.parameters(), 1.0, 0.0)

    if rank == 0:
        next(model.parameters()).grad[0] = float("nan")
    before = gradients(model)
    for call in (clip_grad_norm_, sdp.clip_grad_norm_):
        first = model if call is sdp.clip_grad_norm_ else model.parameters()
        with pytest.raises((RuntimeError, SDPError), match="finite"):
            call(first, 1e-3, error_if_nonfinite=True)
    after = gradients(model)
    assert all(torch.equal(value.nan_to_num(7.0), after[name].nan_to_num(7.0)) for name, value in before.items())
    return synchronised, mixed


def test_accumulated_foreign_and_infinite_gradients(others: list[Any]) -> None:
    _, expected = expected_of("neuron")
    total = torch.cat([*(value.reshape(-1) for value in expected.values()), torch.full((8,), 2.0).double()])
    wanted = [torch.linalg.vector_norm(total, order) for order in ORDERS for _ in range(2)]
    for synchronised, mixed in (own[0] for own in others):
        torch.testing.assert_close(synchronised, oracle(expected, "all", 2.0), rtol=1e-9, atol=0)
        torch.testing.assert_close(mixed, wanted, rtol=1e-9, atol=0)


def blocks(rank: int) -> Any:
    """Each worker clips branches that not all workers hold: those that do meet in their own group, or say no."""
    model = compiled("block")
    backward(model, rank)
    names = dict(model.named_parameters())
    one = [p for name, p in names.items() if name.startswith("branches.0.")]
    norm = clip_grad_norm_(one, HUGE)
    several = [p for name, p in names.items() if name.startswith(("branches.0.", "branches.1."))]
    owners = {worker for piece in model.plan.pieces("branches.0.up.bias") for worker in piece.owners}
    owners |= {worker for piece in model.plan.pieces("branches.1.up.bias") for worker in piece.owners}
    refused = 2 < len(owners) < WORKERS and rank in owners
    if refused:
        with pytest.raises(SDPError, match="hold nothing"):
            clip_grad_norm_(several, HUGE)
    return bool(one), norm, refused


def test_blocks_that_few_workers_hold(others: list[Any]) -> None:
    _, expected = expected_of("block")
    values = torch.cat([value.reshape(-1) for name, value in expected.items() if name.startswith("branches.0.")])
    results = [own[1] for own in others]
    assert 0 < sum(holds for holds, _, _ in results) < WORKERS
    for holds, norm, _ in results:
        if holds:
            torch.testing.assert_close(norm, torch.linalg.vector_norm(values), rtol=1e-9, atol=0)


def halves(rank: int) -> Any:
    model = compiled("neuron", torch.bfloat16)
    backward(model, rank)
    norm = clip_grad_norm_(model.parameters(), 1.0)
    return norm, sdp.clip_grad_norm_(model, HUGE)


def test_half_precision_is_added_in_single_precision(others: list[Any]) -> None:
    _, expected = expected_of("neuron")
    for norm, clipped in (own[2] for own in others):
        assert norm.dtype == clipped.dtype == torch.float32
        torch.testing.assert_close(norm, oracle(expected, "all", 2.0).float(), rtol=5e-2, atol=0)
        torch.testing.assert_close(clipped, torch.tensor(1.0), rtol=1e-2, atol=0)


def within_torch_compile(rank: int) -> Any:
    model = compiled("neuron")
    run = torch.compile(model, backend="aot_eager")
    for _ in range(3):  # from the second on, the graph launches the averaging
        model.zero_grad()
        loss_of(run(batch(rank))).backward()
        plain = clip_grad_norm_(run.parameters(), HUGE)

    def clip() -> Tensor:
        return clip_grad_norm_(model.parameters(), HUGE)

    return plain, torch.compile(clip, backend="eager")()


def test_compiled_models_and_compiled_clipping(others: list[Any]) -> None:
    _, expected = expected_of("neuron")
    for norms in (own[3] for own in others):
        for norm in norms:
            torch.testing.assert_close(norm, oracle(expected, "all", 2.0), rtol=1e-9, atol=0)
