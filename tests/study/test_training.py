"""What a contestant varies in training: rates by owners, moments, the mean of the last steps, and local steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sdp_compile as sdp
from sdp_compile.study.run import run
from sdp_compile.study.spec import Contestant, Run, Study
from sdp_compile.study.tasks import Batch
from sdp_compile.study.training import InStep, LocalSteps, TailMean

WORKERS, HIDDEN = 4, 16
STUDY = Study(task="teacher", steps=10, batch=4, learning_rates=(0.1,), contestants=(), clip=None)


@pytest.fixture
def model() -> nn.Module:
    torch.seed()
    return nn.Sequential(nn.Linear(6, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 3)).double()


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def draw(steps: int) -> list[list[Batch]]:
    return [[(torch.randn(5, 6).double(), torch.randn(5, 3).double()) for _ in range(WORKERS)] for _ in range(steps)]


def emulated(model: nn.Module, coverage: float, **settings: Any) -> sdp.Emulation:
    policy = sdp.NeuronPolicy(coverage=coverage)
    return sdp.emulate(model, policy, (torch.randn(2, 6).double(),), workers=WORKERS, **settings).train()


def contestant(**values: Any) -> Contestant:
    return Contestant(name="own", **values)


def assert_equal(emulation: sdp.Emulation, expected: nn.Module) -> None:
    for (name, one), other in zip(emulation.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


def restricted(model: nn.Module, units: list[int]) -> nn.Module:
    """The subnetwork with some hidden units, written by hand: the others give 0."""
    mask = torch.zeros(HIDDEN, dtype=torch.float64)
    mask[units] = 1

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = model

        def forward(self, x: Tensor) -> Tensor:
            up, act, down = self.whole
            return down(act(up(x)) * mask)

    return Masked()


@pytest.mark.parametrize(("coverage", "weight_decay"), [(1.0, 0.0), (1.0, 0.1), (0.5, 0.0), (0.5, 0.1), (0.25, 0.1)])
def test_local_steps_are_each_workers_own_and_an_outer_step(
    model: nn.Module, coverage: float, weight_decay: float
) -> None:
    """By hand: N masked models with AdamW, and Nesterov's momentum on the mean change of the owners of each element."""
    study = STUDY.replace(weight_decay=weight_decay, clip=0.05)
    emulation = emulated(model, coverage, reduction="tokens")
    training = LocalSteps(emulation, loss_of, study, contestant(local_steps=3))
    plan, everything = emulation.plan, list(range(HIDDEN))
    units = [plan.owned(plan.families[0], rank).tolist() if plan.families else everything for rank in range(WORKERS)]
    owners = torch.zeros(HIDDEN, dtype=torch.float64)
    for own in units:
        owners[own] += 1

    expected = copy.deepcopy(model)
    outer = torch.optim.SGD(expected.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    workers = [copy.deepcopy(model) for _ in range(WORKERS)]
    inner = [torch.optim.AdamW(one.parameters(), weight_decay=weight_decay) for one in workers]
    for step, batches in enumerate(draw(9)):
        rate = 0.01 / (step + 1)
        if step % 3 == 0:
            for one in workers:
                one.load_state_dict(expected.state_dict())
        losses = training.step(batches, rate, False)
        for rank, (one, optimizer, batch) in enumerate(zip(workers, inner, batches, strict=True)):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            loss = loss_of(restricted(one, units[rank]), batch)
            loss.backward()
            nn.utils.clip_grad_norm_(one.parameters(), 0.05)
            optimizer.step()
            assert float(losses[rank]) == pytest.approx(loss.item(), rel=1e-9)
        if step % 3 == 2:
            for name, full in expected.named_parameters():
                total = torch.zeros_like(full)
                for rank, one in enumerate(workers):
                    own = torch.zeros(HIDDEN, dtype=torch.float64)
                    own[units[rank]] = 1
                    weight = {"0.weight": own[:, None] / owners[:, None], "0.bias": own / owners}.get(name)
                    weight = (
                        own / owners if name == "2.weight" else torch.tensor(1 / WORKERS) if weight is None else weight
                    )
                    total += weight * (full - one.get_parameter(name)).detach()
                full.grad = total
            outer.step()
        assert_equal(emulation, expected)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_rates_follow_owners(model: nn.Module, power: float) -> None:
    emulation, expected = emulated(model, 0.5), emulated(model, 0.5)
    training = InStep(emulation, loss_of, STUDY, contestant(rate_by_owners=power))
    shared = [one for name, one in expected.named_parameters() if name == "2.bias"]
    cut = [one for name, one in expected.named_parameters() if name != "2.bias"]
    optimizer = torch.optim.AdamW([{"params": cut}, {"params": shared}], weight_decay=0.0)
    for step, batches in enumerate(draw(4)):
        rates = (0.01 * 0.5**power, 0.01) if step < 2 else (0.01, 0.01)
        if step == 2:
            emulation.replan(sdp.NeuronPolicy(coverage=1.0))
            expected.replan(sdp.NeuronPolicy(coverage=1.0))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        training.step(batches, 0.01, step == 2)
        expected.step(batches, loss_of, optimizer)
    assert_equal(emulation, expected)


@pytest.mark.parametrize("moments", ["keep", "clear"])
def test_moments_begin_anew_if_asked_to(model: nn.Module, moments: str) -> None:
    emulation, expected = emulated(model, 0.5), emulated(model, 0.5)
    training = InStep(emulation, loss_of, STUDY, contestant(moments=moments))
    optimizer = torch.optim.AdamW(expected.parameters(), lr=0.01, weight_decay=0.0)
    for step, batches in enumerate(draw(4)):
        if step == 2:
            for one in (emulation, expected):
                one.replan(sdp.NeuronPolicy(coverage=1.0))
            if moments == "clear":
                optimizer = torch.optim.AdamW(expected.parameters(), lr=0.01, weight_decay=0.0)
        training.step(batches, 0.01, step == 2)
        expected.step(batches, loss_of, optimizer)
    assert_equal(emulation, expected)


def test_the_mean_of_the_last_steps(model: nn.Module) -> None:
    emulation = emulated(model, 0.5)
    tail, training = TailMean(emulation, 2), InStep(emulation, loss_of, STUDY, contestant())
    values = []
    for step, batches in enumerate(draw(5)):
        training.step(batches, 0.01, False)
        tail.add(step)
        values.append([one.detach().clone() for one in emulation.parameters()])
        if step == 1:
            torch.testing.assert_close(list(tail.full_model().parameters()), values[-1])
    means = [torch.stack(some).mean(0) for some in zip(*values[2:], strict=True)]
    torch.testing.assert_close([one.detach() for one in tail.full_model().parameters()], means)
    assert_equal(emulation, _with(model, values[-1]))  # training goes on from the last values


def _with(model: nn.Module, values: list[Tensor]) -> nn.Module:
    result = copy.deepcopy(model)
    with torch.no_grad():
        for one, value in zip(result.parameters(), values, strict=True):
            one.copy_(value)
    return result


def test_what_is_varied_changes_a_run_and_its_name_but_not_that_of_others() -> None:
    options = {"inputs": 8, "hidden": 16, "teacher": 8}
    variations: dict[str, dict[str, Any]] = {
        "plain": {},
        "rates": {"rate_by_owners": 0.5},
        "moments": {"moments": "clear"},
        "mean": {"mean_of_last": 0.5},
        "local": {"local_steps": 3},
    }
    contestants = tuple(Contestant(name=name, schedule="dense-tail", **one) for name, one in variations.items())
    study = Study(task="teacher", options=options, steps=12, batch=4, learning_rates=(0.01,), contestants=contestants)
    runs = {name: Run(name, "steps", 0, 0.01, False) for name in variations}
    assert len({study.key(one) for one in runs.values()}) == len(runs)
    results = {name: run(study, one) for name, one in runs.items()}
    assert len({result["result"]["loss"] for result in results.values()}) == len(runs)
    states = {name: result["state"] for name, result in results.items()}
    assert states == pytest.approx({"plain": 1, "rates": 1, "moments": 1, "mean": 1.25, "local": 1.5}, abs=0.01)
