"""Relatives of the traps: loops that are right for slices equal one process's; what a worker does alone is noticed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import timm.optim
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.utils import dispatch_clip_grad
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from torch.optim import swa_utils

import sdp_compile as sdp
from tests.distributed import run_workers
from tests.traps.small import POLICY, assert_owners_agree, original, owned, raised

WORKERS = 4


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(6, 8, generator=generator).double(), torch.randn(6, 4, generator=generator).double()


class Compiled:
    """The compiled model of one worker."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.group = dist.new_group(timeout=timedelta(seconds=60))  # an error leaves the old one unusable
        self.model: Any = sdp.compile(original(), POLICY, (torch.randn(6, 8).double(),), group=self.group)

    def loss(self, step: int) -> Tensor:
        x, y = batch(step, self.rank)
        return F.mse_loss(self.model(x), y)

    def backward(self, step: int) -> None:
        self.loss(step).backward()

    def adamw(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-2)


class Whole(Compiled):
    """The original in one process: each gradient is the mean over its owners of those of masked models."""

    def __init__(self, plan: Any) -> None:
        self.model, self.plan, self.rank = original(), plan, 0

    def backward(self, step: int) -> None:
        parameters = dict(self.model.named_parameters())
        sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        owners = {name: sum(self.plan.mask(name, rank).double() for rank in range(WORKERS)) for name in parameters}
        for rank in range(WORKERS):
            masked = {name: parameter * self.plan.mask(name, rank) for name, parameter in parameters.items()}
            x, y = batch(step, rank)
            loss = F.mse_loss(functional_call(self.model, masked, (x,)), y)
            for name, gradient in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
                sums[name] += gradient
        for name, parameter in parameters.items():
            gradient = sums[name] / owners[name]
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def steps(
    it: Compiled, optimizer: Any, between: Callable[[], Any] = lambda: None, after: Callable[[], Any] = lambda: None
) -> None:
    for step in range(4):
        optimizer.zero_grad()
        it.backward(step)
        between()
        optimizer.step()
        after()


# -- loops that are exact ----------------------------------------------------------------------------------------------


def clipping_layer_by_layer(it: Compiled) -> None:
    def clip() -> None:
        for part in it.model.children():
            if list(part.parameters()):
                clip_grad_norm_(part.parameters(), 0.01)

    steps(it, it.adamw(), clip)


def timm_s_clipping(it: Compiled) -> None:
    steps(it, it.adamw(), lambda: dispatch_clip_grad(it.model.parameters(), 0.01, mode="norm"))


def sharpness_aware(it: Compiled) -> None:
    """SAM by hand, with the usual norm."""
    optimizer, parameters = torch.optim.SGD(it.model.parameters(), lr=0.1, momentum=0.9), list(it.model.parameters())
    for step in range(3):
        it.backward(step)
        with torch.no_grad():
            norm = torch.norm(torch.stack([parameter.grad.norm(p=2) for parameter in parameters]), p=2)
            before = [parameter.clone() for parameter in parameters]
            for parameter in parameters:
                parameter.add_(parameter.grad * (0.05 / norm))
        optimizer.zero_grad()
        it.backward(step)
        for parameter, value in zip(parameters, before, strict=True):
            parameter.data = value
        optimizer.step()
        optimizer.zero_grad()


def timm_s_lookahead(it: Compiled) -> None:
    """A wrapper that is an Optimizer without being initialised as one."""
    optimizer = timm.optim.create_optimizer_v2(it.model, "lookahead_adamw", lr=1e-2)
    steps(it, optimizer)
    steps(it, optimizer)


def an_optimizer_for_each_parameter(it: Compiled) -> None:
    optimizers = [torch.optim.Adam([parameter], lr=1e-2) for parameter in it.model.parameters()]
    for step in range(3):
        it.model.zero_grad()
        it.backward(step)
        for optimizer in optimizers:
            optimizer.step()


def layers_frozen_for_a_while(it: Compiled) -> None:
    optimizer = it.adamw()
    for step in range(5):
        parameters = list(it.model.parameters())
        optimizer.zero_grad()
        for parameter in parameters[:2]:
            parameter.requires_grad_(step not in (2, 3))
        if isinstance(it, Whole):
            for parameter in parameters:
                parameter.requires_grad_(True)
        it.backward(step)
        if step in (2, 3):
            for parameter in parameters[:2]:
                parameter.grad = None
        optimizer.step()


def one_vector_and_a_copy(it: Compiled) -> None:
    average = swa_utils.AveragedModel(it.model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5))

    def shrink() -> None:
        vector_to_parameters(parameters_to_vector(it.model.parameters()) * 0.99, it.model.parameters())
        average.update_parameters(it.model)

    steps(it, it.adamw(), after=shrink)
    it.model = average.module


def by_hand(it: Compiled) -> None:
    for step in range(3):
        it.model.zero_grad()
        it.backward(step)
        for parameter in it.model.parameters():
            parameter.data = parameter.data - 0.1 * parameter.grad.data


EXACT = (
    clipping_layer_by_layer,
    timm_s_clipping,
    sharpness_aware,
    timm_s_lookahead,
    an_optimizer_for_each_parameter,
    layers_frozen_for_a_while,
    one_vector_and_a_copy,
    by_hand,
)


# -- what is an error on all workers -----------------------------------------------------------------------------------


def a_step_within_backward(it: Compiled) -> None:
    for parameter in it.model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    it.backward(0)


def state_of_the_original_s_optimizer(it: Compiled) -> None:
    model = original()
    theirs, ours = torch.optim.AdamW(model.parameters()), it.adamw()
    model(batch(0, 0)[0]).sum().backward()
    theirs.step()
    ours.load_state_dict(theirs.state_dict())
    steps(it, ours)


def another_dtype_on_one_worker(it: Compiled) -> None:
    x, y = batch(0, it.rank)
    if it.rank == 1:
        it.model.float()
        x, y = x.float(), y.float()
    F.mse_loss(it.model(x), y).backward()


def steps_by_hand_that_differ(it: Compiled) -> None:
    """No optimizer, and nothing is ever assembled."""
    for step in range(16):
        it.model.zero_grad()
        it.backward(step)
        with torch.no_grad():
            for parameter in it.model.parameters():
                parameter -= 0.1 * parameter.grad / torch.linalg.vector_norm(parameter.grad).item()


def a_sum_of_squares(it: Compiled) -> None:
    def clip() -> None:
        norm = sum(parameter.grad.square().sum() for parameter in it.model.parameters()) ** 0.5
        for parameter in it.model.parameters():
            parameter.grad.mul_(0.01 / norm)

    steps(it, it.adamw(), clip)


def two_steps_on_one_worker(it: Compiled) -> None:
    optimizer = it.adamw()
    steps(it, optimizer, after=optimizer.step if it.rank == 1 else lambda: None)


def an_average_of_gradients_by_hand(it: Compiled) -> None:
    def average() -> None:
        for parameter in it.model.parameters():
            dist.all_reduce(parameter.grad)

    steps(it, it.adamw(), average)


def a_full_state_on_worker_0_only(it: Compiled) -> None:
    if it.rank == 0:
        it.model.full_state_dict()
    steps(it, it.adamw())


NOTICED = {
    a_full_state_on_worker_0_only: ("Worker 0 is in full_state_dict(), while workers 1, 2, 3", "out of a branch"),
    a_step_within_backward: ("would step inside backward", "Step it when backward() has returned"),
    state_of_the_original_s_optimizer: ("the shapes of the original model", "load_full_optimizer_state_dict()"),
    another_dtype_on_one_worker: ("The dtype of '0.weight' differs between workers 0, 2, 3 and worker 1", "alike"),
    steps_by_hand_that_differ: ("The value of ", "differs between", "load_full_state_dict() on all workers"),
    a_sum_of_squares: ("changed by the sum() of the gradient of '0.weight'", "sdp.clip_grad_norm_()"),
    two_steps_on_one_worker: ("while worker 1 is in an optimizer's step", "skip steps on all workers together"),
    an_average_of_gradients_by_hand: ("The gradient of '0.weight'", "differs between"),
}
"""What is an error on all workers, and what it says."""


def two_models_in_any_order(rank: int) -> str:
    """On worker 1 another model takes part in backward first, now and then."""
    it = Compiled(rank)
    second: Any = sdp.compile(original(3), POLICY, (torch.randn(6, 8).double(),), group=it.group)
    optimizer = torch.optim.AdamW([*it.model.parameters(), *second.parameters()], lr=1e-2)

    def train() -> None:
        for step in range(9):
            optimizer.zero_grad()
            x, y = batch(step, rank)
            models = (second, it.model) if (rank, step % 3) == (1, 1) else (it.model, second)
            torch.stack([F.mse_loss(model(x), y) for model in models]).sum().backward()
            optimizer.step()
        it.model.full_state_dict()
        second.full_state_dict()

    return raised(train)


def everything(rank: int) -> tuple[dict[str, Any], dict[str, str]]:
    warnings.simplefilter("ignore")
    exact: dict[str, Any] = {}
    for loop in EXACT:
        it = Compiled(rank)
        loop(it)
        exact[loop.__name__] = owned(it.model), it.model.full_state_dict()
    plan = Compiled(rank).model.plan
    wholes = {}
    if rank == 0:
        for loop in EXACT:
            whole = Whole(plan)
            loop(whole)
            wholes[loop.__name__] = whole.model.state_dict()
    noticed = {}
    for trap in NOTICED:
        it = Compiled(rank)
        noticed[trap.__name__] = raised(lambda trap=trap, it=it: trap(it))
    noticed["two_models_in_any_order"] = two_models_in_any_order(rank)
    return {"exact": exact, "wholes": wholes}, noticed


@pytest.fixture(scope="module")
def found() -> list[Any]:
    return run_workers(everything, WORKERS, limit=220)


@pytest.mark.parametrize("loop", EXACT, ids=lambda loop: loop.__name__)
def test_loops_equal_those_of_one_process(loop: Any, found: list[Any]) -> None:
    assert_owners_agree([results["exact"][loop.__name__][0] for results, _ in found])
    expected = found[0][0]["wholes"][loop.__name__]
    start = original().state_dict()
    for name, value in found[1][0]["exact"][loop.__name__][1].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
        assert (value != start[name]).all()


@pytest.mark.parametrize("trap", NOTICED, ids=lambda trap: trap.__name__)
def test_what_workers_do_apart_is_an_error_on_all(trap: Any, found: list[Any]) -> None:
    texts = {errors[trap.__name__] for _, errors in found}
    assert len(texts) == 1
    for part in NOTICED[trap]:
        assert part in next(iter(texts)), texts


def test_two_models_may_take_part_in_any_order(found: list[Any]) -> None:
    assert {errors["two_models_in_any_order"] for _, errors in found} == {""}
