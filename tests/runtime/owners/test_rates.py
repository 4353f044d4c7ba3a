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


# -- in processes ----------------------------------------------------------------------------------------------------

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


def test_copies_of_a_model_keep_its_rates() -> None:
    for change, expected in run_workers(copied, WORKERS)[0]:
        assert change == pytest.approx(expected, rel=1e-6)


# -- groups of an optimizer ------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> sdp.Emulation:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    return sdp.emulate(original, schedule(0.5, HALF), (torch.randn(2, 6).double(),), workers=WORKERS)


def step(model: sdp.Emulation, optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(3, 6, dtype=torch.float64, generator=generator) for _ in range(WORKERS)]
    model.zero_grad()
    model.backward(batches, lambda worker, inputs: worker(inputs).pow(2).mean())
    optimizer.step()


class Descent(torch.optim.Optimizer):
    """Gradient descent that does what it is told to at the end of a step."""

    def __init__(self, parameters: Any, after: Callable[[dict[str, Any]], None], **defaults: Any) -> None:
        super().__init__(parameters, {"lr": 0.5, **defaults})
        self.after = after

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for one in group["params"]:
                one -= group.get("lr", 1.0) * one.grad
            self.after(group)


def changes(model: sdp.Emulation, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Runs a step, and returns the learning rate that each parameter has had."""
    before = {name: one.detach().clone() for name, one in model.named_parameters()}
    step(model, optimizer)
    return {name: ((before[name] - one).norm() / one.grad.norm()).item() for name, one in model.named_parameters()}


EXPECTED = {"0.weight": 0.5**1.5, "0.bias": 0.5**1.5, "2.weight": 0.5**1.5, "2.bias": 0.5}


def test_a_step_that_fails_leaves_the_groups_to_the_next_one(model: sdp.Emulation) -> None:
    def fail(group: dict[str, Any]) -> None:
        raise RuntimeError("out of memory")

    optimizer = Descent(model.parameters(), fail)
    (own,) = optimizer.param_groups
    with pytest.raises(RuntimeError, match="out of memory"):
        step(model, optimizer)
    optimizer.after = lambda group: None
    assert changes(model, optimizer) == pytest.approx(EXPECTED)
    assert optimizer.param_groups == [own] and optimizer.param_groups[0] is own and own["lr"] == 0.5


def test_a_state_after_a_step_that_failed_has_the_groups_of_the_user(model: sdp.Emulation) -> None:
    def fail(group: dict[str, Any]) -> None:
        raise RuntimeError("out of memory")

    optimizer = Descent(model.parameters(), fail)
    before = optimizer.state_dict()["param_groups"]
    with pytest.raises(RuntimeError, match="out of memory"):
        step(model, optimizer)
    assert optimizer.state_dict()["param_groups"] == before
    optimizer.load_state_dict(optimizer.state_dict())


def test_options_that_each_step_changes_stay_with_the_group(model: sdp.Emulation) -> None:
    def count(group: dict[str, Any]) -> None:
        group["steps"] = group.get("steps", 0) + 1

    optimizer = Descent(model.parameters(), count)
    for number in range(1, 4):
        assert changes(model, optimizer) == pytest.approx(EXPECTED)
        (own,) = optimizer.param_groups
        assert own["steps"] == number and own["lr"] == 0.5 and len(own["params"]) == 4


@pytest.mark.parametrize("kind", ["by what it holds", "in place", "rate"])
def test_options_that_a_step_computes_from_a_group_are_refused(model: sdp.Emulation, kind: str) -> None:
    def change(group: dict[str, Any]) -> None:
        if kind == "by what it holds":
            group["distance"] = sum(one.norm().item() for one in group["params"])
        elif kind == "in place":
            group["count"].add_(1)
        else:
            group["lr"] *= 0.9

    optimizer = Descent(model.parameters(), change, count=torch.zeros(()))
    with pytest.raises(sdp.SDPError, match="rate_by_owners"):
        step(model, optimizer)
    assert len(optimizer.param_groups) == 1


def test_an_optimizer_without_a_rate_is_refused(model: sdp.Emulation) -> None:
    optimizer = Descent(model.parameters(), lambda group: None)
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(sdp.SDPError, match="'lr'"):
        step(model, optimizer)


def test_groups_of_the_user_and_parameters_of_others(model: sdp.Emulation) -> None:
    other = nn.Parameter(torch.ones(3, dtype=torch.float64))
    other.grad = torch.ones_like(other)
    first, *rest = model.parameters()
    groups: list[dict[str, Any]] = [{"params": [first, other], "lr": 0.25}, {"params": rest}, {"params": []}]
    optimizer = Descent(groups, lambda group: None)
    found = changes(model, optimizer)
    assert found == pytest.approx({**EXPECTED, "0.weight": 0.25 * 0.5**0.5})
    torch.testing.assert_close(other.detach(), torch.full_like(other, 0.75))


def test_a_schedule_that_is_set_or_changed_later(model: sdp.Emulation) -> None:
    optimizer = Descent(model.parameters(), lambda group: None)
    assert changes(model, optimizer) == pytest.approx(EXPECTED)
    model.schedule = schedule(1.0, HALF)
    assert changes(model, optimizer) == pytest.approx({**EXPECTED, **dict.fromkeys(list(EXPECTED)[:3], 0.25)})
    model.replan(FULL)
    assert changes(model, optimizer) == pytest.approx(dict.fromkeys(EXPECTED, 0.5))
    model.schedule = None
    model.replan(HALF)
    assert changes(model, optimizer) == pytest.approx(dict.fromkeys(EXPECTED, 0.5))


def test_optimizers_are_not_kept_alive(model: sdp.Emulation) -> None:
    optimizer = Descent(model.parameters(), lambda group: None)
    step(model, optimizer)
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None


def test_steps_that_are_compiled(model: sdp.Emulation) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer.step = torch.compile(optimizer.step, backend="eager")  # type: ignore[method-assign]
    for _ in range(3):
        assert changes(model, optimizer) == pytest.approx(EXPECTED)
