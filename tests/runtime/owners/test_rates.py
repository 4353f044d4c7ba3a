"""Learning rates by owners, against optimizers whose groups a user divided by hand."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

import sdp_compile as sdp
from tests.distributed import run_workers
from tests.runtime.models import Transformer

WORKERS, STEPS, CHANGE = 4, 6, 3
HALF, FULL = sdp.NeuronPolicy(coverage=0.5), sdp.NeuronPolicy(coverage=1.0)


def schedule(power: float, *policies: sdp.Policy) -> sdp.Schedule:
    chosen = policies or (HALF, FULL)
    phases = [sdp.Phase(one, share=1 / len(chosen)) for one in chosen]
    return sdp.Schedule(phases, steps=STEPS, rate_by_owners=power)


def batch(rank: int, step: int) -> Tensor:
    return torch.randint(0, 13, (3, 8), generator=torch.Generator().manual_seed(100 * rank + step))


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def transformer() -> nn.Module:
    torch.manual_seed(3)
    return Transformer().double()


OPTIMIZERS: dict[str, Callable[[nn.Module, Any], torch.optim.Optimizer]] = {
    "AdamW": lambda _, groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1),
    "fused": lambda _, groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1, fused=True),
    "tensor": lambda _, groups: torch.optim.AdamW(groups, lr=torch.tensor(0.01).double(), foreach=False),
    "SGD": lambda _, groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
    "sharded": lambda model, groups: sdp.ShardedOptimizer(model, torch.optim.AdamW, groups, lr=0.01, weight_decay=0.1),
}


CASES: dict[str, tuple[str, float, tuple[sdp.Policy, ...]]] = {
    **{kind: (kind, 0.5, (HALF, FULL)) for kind in OPTIMIZERS},
    **{
        f"{what}, {kind}": (kind, 1.0, policies)
        for kind in ("AdamW", "sharded")
        for what, policies in {
            "blocks": (sdp.BlockPolicy(coverage=0.5), sdp.NeuronPolicy(coverage=0.5, masking="backward")),
            "core": (sdp.NeuronPolicy(coverage=0.5, design="core"), sdp.NeuronPolicy(coverage=0.25)),
        }.items()
    },
}


def train(rank: int, case: str, by_hand: bool) -> dict[str, Tensor]:
    """Trains with ``rate_by_owners``, or with a group for each parameter, whose rate is set from all workers' masks."""
    kind, power, policies = CASES[case]
    model = sdp.compile(transformer(), schedule(0.0 if by_hand else power, *policies), (batch(0, 0)[:, :-1],))
    named = dict(model.named_parameters())
    names = [name for name, _ in transformer().named_parameters()]  # of which a worker may hold nothing
    own = [{"params": [named[name]] if name in named else []} for name in names]
    norms, others = ([one for name, one in named.items() if ("norm" in name) == is_norm] for is_norm in (True, False))
    optimizer = OPTIMIZERS[kind](model, own if by_hand else [{"params": norms}, {"params": others}])
    peak = float(optimizer.param_groups[0]["lr"])
    scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(STEPS):
        model.advance(step, optimizer)
        if by_hand:
            for name, group in zip(names, optimizer.param_groups, strict=True):
                masks = [model.plan.mask(name, worker) for worker in range(WORKERS)]
                group["lr"] = peak / (1 + step) * torch.stack(masks).double().mean().item() ** power
        loss = loss_of(model, batch(rank, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not by_hand:
            groups = (optimizer.param_groups, optimizer.state_dict()["param_groups"])
            assert all([float(one["lr"]) for one in some] == pytest.approx([peak / (1 + step)] * 2) for some in groups)
        scheduler.step()
    return dict(model.full_state_dict())


def train_all(rank: int) -> dict[str, list[dict[str, Tensor]]]:
    return {case: [train(rank, case, by_hand) for by_hand in (True, False)] for case in CASES}


@pytest.fixture(scope="module")
def trained() -> dict[str, list[dict[str, Tensor]]]:
    result: dict[str, list[dict[str, Tensor]]] = run_workers(train_all, WORKERS, limit=300)[0]
    return result


@pytest.mark.parametrize("case", CASES)
def test_rates_follow_the_owners_of_each_phase(trained: dict[str, list[dict[str, Tensor]]], case: str) -> None:
    by_hand, by_owners = trained[case]
    for name, expected in by_hand.items():
        torch.testing.assert_close(by_owners[name], expected, rtol=1e-9, atol=1e-12)


def copied(rank: int) -> list[tuple[bool, float]]:
    model = sdp.compile(transformer(), schedule(0.5, HALF), (batch(0, 0)[:, :-1],))
    twins = [copy.deepcopy(model), copy.copy(model)]
    result = []
    for one in (model, *twins):
        optimizer = torch.optim.SGD(one.parameters(), lr=1.0)
        before = {name: value.detach().clone() for name, value in one.named_parameters()}
        optimizer.zero_grad()
        loss_of(one, batch(rank, 0)).backward()
        gradients = {name: value.grad.clone() for name, value in one.named_parameters()}
        optimizer.step()
        for name, value in one.named_parameters():
            change = (before[name] - value).norm() / gradients[name].norm()
            masks = [one.plan.mask(name, worker) for worker in range(WORKERS)]
            result.append((change.item(), torch.stack(masks).double().mean().item() ** 0.5))
        with torch.no_grad():
            for name, value in one.named_parameters():
                value.copy_(before[name])
    return result


def old_parameters(rank: int) -> list[bool]:
    """Whether parameters are still there that the change of plan has replaced."""
    result = []
    for sharded in (False, True):
        model = sdp.compile(transformer(), schedule(0.5), (batch(0, 0)[:, :-1],))
        parts = sdp.ShardedOptimizer(model, torch.optim.AdamW) if sharded else torch.optim.AdamW(model.parameters())
        for step in range(CHANGE):
            model.advance(step, parts)
            loss_of(model, batch(rank, step)).backward()
            parts.step()
            parts.zero_grad()
        before = [weakref.ref(one) for one in model.parameters()]
        model.advance(CHANGE, parts)
        gc.collect()
        current = set(map(id, model.parameters()))
        result += [(one := reference()) is not None and id(one) not in current for reference in before]
    return result


def changed_on_one(rank: int) -> str:
    model = sdp.compile(transformer(), schedule(0.5), (batch(0, 0)[:, :-1],))
    if rank == 1:
        model.schedule = schedule(1.0)
    loss_of(model, batch(rank, 0)).backward()
    try:
        torch.optim.AdamW(model.parameters()).step()
    except sdp.DistributedError as error:
        return str(error)
    return "no error"


def test_rates_that_differ_between_workers_are_an_error_on_all() -> None:
    for message in run_workers(changed_on_one, 2):
        assert "rate_by_owners" in message and "0.5" in message and "1.0" in message


def test_copies_of_a_model_keep_its_rates() -> None:
    for change, expected in run_workers(copied, WORKERS)[0]:
        assert change == pytest.approx(expected, rel=1e-6)


def test_that_nothing_keeps_parameters_of_an_earlier_plan() -> None:
    assert not any(run_workers(old_parameters, WORKERS)[0])
