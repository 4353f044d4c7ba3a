"""What a contestant varies in training: rates by owners, moments, the mean of the last steps, and local steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sdp_compile as sdp
from sdp_compile.errors import PolicyError
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


HALF = sdp.NeuronPolicy(coverage=0.5)


def emulated(model: nn.Module, coverage: float, **settings: Any) -> sdp.Emulation:
    policy = sdp.NeuronPolicy(coverage=coverage)
    return sdp.emulate(model, policy, (torch.randn(2, 6).double(),), workers=WORKERS, **settings).train()


def contestant(**values: Any) -> Contestant:
    return Contestant(name="own", **values)


def assert_equal(emulation: sdp.Emulation, expected: nn.Module) -> None:
    for (name, one), other in zip(emulation.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


class Masked(nn.Module):
    """The subnetwork with some hidden units, written by hand: the others give 0."""

    def __init__(self, whole: nn.Module, units: Tensor) -> None:
        super().__init__()
        self.whole, self.units = whole, units

    def forward(self, x: Tensor) -> Tensor:
        up, act, down = self.whole.children()
        result: Tensor = down(act(up(x)) * self.units)
        return result


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("coverage", "masking"), [(1.0, "forward"), (0.5, "forward"), (0.25, "forward"), (0.5, "backward")]
)
def test_local_steps_are_each_workers_own_and_an_outer_step(
    model: nn.Module, coverage: float, masking: Any, weight_decay: float
) -> None:
    """By hand: N masked models with AdamW, and Nesterov's momentum on the mean change of the owners of each element.

    Rounds have 3 steps; the first ends early, because the plan changes, and the last, because training ends.
    """
    study = STUDY.replace(weight_decay=weight_decay, clip=0.05)
    emulation = emulated(model, 1.0, reduction="tokens")
    training = LocalSteps(emulation, loss_of, study, contestant(local_steps=3, match="steps"))
    expected = copy.deepcopy(model)
    outer = torch.optim.SGD(expected.parameters(), lr=0.7, momentum=0.9, nesterov=True)
    masks, workers, inner = [torch.ones(HIDDEN, dtype=torch.float64)] * WORKERS, list[nn.Module](), list[Any]()

    def outer_step() -> None:
        for name, full in expected.named_parameters():
            own = [of_parameter(name, mask, full) for mask in masks]
            changes = [mask * (full - one.get_parameter(name)) for mask, one in zip(own, workers, strict=True)]
            full.grad = (sum(changes) / sum(own)).detach()
        outer.step()

    for step, batches in enumerate(draw(9)):
        rate, is_changed = 0.01 / (step + 1), step == 2
        if is_changed:
            outer_step()
            emulation.replan(sdp.NeuronPolicy(coverage=coverage, masking=masking))
            plan = emulation.plan
            if plan.families:
                masks = [torch.zeros(HIDDEN, dtype=torch.float64) for _ in range(WORKERS)]
                for rank, mask in enumerate(masks):
                    mask[plan.owned(plan.families[0], rank).tolist()] = 1
        if step == 0 or is_changed:
            workers = [copy.deepcopy(expected) for _ in range(WORKERS)]
            inner = [torch.optim.AdamW(one.parameters(), weight_decay=weight_decay) for one in workers]
        elif step in (5, 8):
            for one in workers:
                one.load_state_dict(expected.state_dict())
        losses = training.step(batches, rate, is_changed)
        for rank, (one, optimizer, batch) in enumerate(zip(workers, inner, batches, strict=True)):
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            before = {name: value.detach().clone() for name, value in one.named_parameters()}
            loss = loss_of(Masked(one, masks[rank]) if masking == "forward" else one, batch)
            loss.backward()
            own = {name: of_parameter(name, masks[rank], value) for name, value in one.named_parameters()}
            for name, value in one.named_parameters():
                assert value.grad is not None
                value.grad *= own[name]
            nn.utils.clip_grad_norm_(one.parameters(), 0.05)
            optimizer.step()
            with torch.no_grad():
                for name, value in one.named_parameters():
                    value.copy_(own[name] * value + (1 - own[name]) * before[name])
            assert losses[rank].item() == pytest.approx(loss.item(), rel=1e-9)
        if step in (4, 7):
            outer_step()
        assert_equal(emulation, expected)
    training.close()
    outer_step()
    assert_equal(emulation, expected)
    training.close()  # nothing is left
    assert_equal(emulation, expected)


def of_parameter(name: str, units: Tensor, parameter: Tensor) -> Tensor:
    """Which elements of a parameter belong to hidden units."""
    shaped = {"0.weight": units[:, None], "0.bias": units, "2.weight": units}.get(name, torch.ones(1))
    return shaped.double().expand_as(parameter)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_rates_follow_owners(model: nn.Module, power: float) -> None:
    emulation, expected = emulated(model, 0.5), emulated(model, 0.5)
    own = contestant(rate_by_owners=power, schedule=sdp.Schedule([sdp.Phase(HALF)], rate_by_owners=2.0))
    emulation.schedule = STUDY.schedule_of(own, 4)
    training = InStep(emulation, loss_of, STUDY, own)
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
    contestants = tuple(
        Contestant(name=name, schedule="dense-tail", match="steps", **one) for name, one in variations.items()
    )
    study = Study(task="teacher", options=options, steps=12, batch=4, learning_rates=(0.01,), contestants=contestants)
    runs = {name: Run(name, "steps", 0, 0.01, False) for name in variations}
    assert len({study.key(one) for one in runs.values()}) == len(runs)
    results = {name: run(study, one) for name, one in runs.items()}
    assert len({result["result"]["loss"] for result in results.values()}) == len(runs)
    states = {name: result["state"] for name, result in results.items()}
    assert states == pytest.approx({"plain": 1, "rates": 1, "moments": 1, "mean": 1.25, "local": 1.5}, abs=0.01)


def test_rounds_that_are_longer_than_a_run_or_a_phase_train_too() -> None:
    options = {"inputs": 8, "hidden": 16, "teacher": 8}
    own = Contestant(name="local", schedule="dense-tail", match="steps", local_steps=100)
    study = Study(task="teacher", options=options, steps=24, batch=8, learning_rates=(0.01,), contestants=(own,))
    assert not own.replace(schedule=sdp.Schedule([sdp.Phase(sdp.NeuronPolicy(coverage=1.0))])).is_dense
    losses = {}
    for steps in (1, 24):
        one = study.replace(steps=steps, evaluations=1) if steps > 1 else study.replace(steps=2, evaluations=1)
        losses[steps] = run(one, Run("local", "steps", 0, 0.01, False))["result"]["loss"]
    assert losses[24] < 0.9 * losses[1]


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"rate_by_owners": 0.5}, "rate_by_owners"),
        ({"schedule": sdp.Schedule([sdp.Phase(HALF)], rate_by_owners=0.5)}, "rate_by_owners"),
        ({"moments": "clear"}, "moments"),
        ({"sharded": True}, "sharded"),
        ({"match": "time"}, 'match = "time"'),
    ],
)
def test_what_local_steps_contradict_is_refused(values: dict[str, Any], word: str) -> None:
    with pytest.raises(PolicyError, match=word):
        Contestant(**{"name": "own", "local_steps": 2, "match": "flops", **values})
