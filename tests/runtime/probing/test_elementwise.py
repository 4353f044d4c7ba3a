"""Optimizers are accepted for what they do to slices of parameters, not for their names."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
from torch import nn, optim
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from sdp_compile.errors import SDPError
from sdp_compile.runtime.probing import elementwise
from sdp_compile.runtime.probing.elementwise import ELEMENTWISE, check_elementwise
from sdp_compile.runtime.probing.probe import problem_of
from sdp_compile.runtime.probing.trial import Setting
from tests.runtime.optimizer.optimizers import (
    Around,
    Centred,
    Counting,
    FlatDiffers,
    GlobalNorm,
    LargeOnly,
    Late,
    MatrixNorm,
    Noisy,
    NotFinite,
    OnlyMatrices,
    Own,
    PerElement,
    PerLoss,
    PerNumber,
    PerNumel,
    PerTotal,
    Sharp,
    Still,
)

CPU = torch.device("cpu")


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3))]


def seen(optimizer: Optimizer, **setting: bool) -> str | None:
    return problem_of(optimizer, optimizer.param_groups[0], Setting(CPU, **setting))


@pytest.mark.parametrize("kind", sorted(ELEMENTWISE, key=lambda kind: kind.__name__))
def test_those_that_are_not_tried_would_pass(kind: type[Optimizer]) -> None:
    for flat in (False, True):
        options: dict[str, Any] = {} if kind is optim.Rprop else {"weight_decay": 0.1}
        assert seen(kind(parameters(), lr=0.1, **options), flat=flat) is None  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "options",
    [
        {"fused": True, "amsgrad": True},
        {"foreach": True, "maximize": True},
        {"differentiable": True},
        {"lr": torch.tensor(0.0)},
    ],
    ids=lambda options: "_".join(options),
)
def test_options_of_torch(options: dict[str, Any]) -> None:
    optimizer = optim.AdamW(parameters(), **options)
    rate = copy.deepcopy(optimizer.param_groups[0]["lr"])
    assert seen(optimizer) is None
    assert optimizer.param_groups[0]["lr"] == rate


@pytest.mark.parametrize("name", ["AdaBelief", "Adan", "Adopt", "Lion", "LaProp", "MADGRAD", "SGDW", "Lars"])
def test_element_wise_optimizers_of_timm(name: str) -> None:
    check_elementwise(getattr(timm.optim, name)(parameters(), lr=1e-2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda p: timm.optim.Mars(p),
            "steps a slice of a .-dimensional parameter differently from the whole, by 0.0",
        ),
        (lambda p: timm.optim.Lion(p, caution=True), "differently from the whole"),  # it takes a mean of the mask
        (lambda p: timm.optim.Lars(p, always_adapt=True), "differently from the whole"),
        (lambda p: timm.optim.AdafactorBigVision(p), "factors its state over whole rows"),
        (lambda p: timm.optim.NvNovoGrad(p), "norm of whole parameters"),
        (lambda p: timm.optim.AdamP(p), "projects updates"),
        (lambda p: optim.Adafactor(p), "Adafactor factors its state"),
        (lambda p: optim.LBFGS(p), "LBFGS uses scalar products"),
        (PerNumel, "PerNumel is not element-wise: it steps a slice of a .-dimensional parameter"),
        (PerTotal, "differently"),
        (PerNumber, "differently if other parameters are absent"),
        (Centred, "steps a slice of a .-dimensional parameter differently from the whole"),
        (LargeOnly, "steps a slice of a .-dimensional parameter differently from the whole, by .* after 20 steps"),
        (GlobalNorm, "if other parameters have other gradients"),
        (MatrixNorm, "a 2-dimensional parameter differently if other parameters have other gradients"),
        (lambda p: OnlyMatrices(p[:1]), "if other parameters"),
        (NotFinite, "a slice of a 2-dimensional parameter differently from the whole, by inf"),
        (Counting, "if other parameters"),
        (Late, "differently from the whole, by .* after 40 steps"),
        (Noisy, "depends on random numbers"),
        (lambda p: PerElement(p, normalise=True), "differently from the whole"),
        (lambda p: Around(PerNumel(p)), "Around is not element-wise"),
        (Still, "may not be element-wise: .* did not change a .-dimensional parameter in 40 steps"),
        (optim.SparseAdam, "may not be element-wise: .* does not support dense gradients"),
    ],
)
def test_optimizers_that_are_not_element_wise(make: Callable[[Any], Optimizer], message: str) -> None:
    with pytest.raises(SDPError, match=message):
        check_elementwise(make(parameters()))


@pytest.mark.parametrize("make", [Own, PerElement, lambda p: Around(PerElement(p)), lambda p: Own(p, extra=(1, "a"))])
def test_element_wise_optimizers_of_ones_own(make: Callable[[Any], Optimizer]) -> None:
    check_elementwise(make(parameters()))
    check_elementwise(make(parameters()), flat=True)
    check_elementwise(make(parameters()), closure=True)


def test_flat_shards_and_closures_are_tried_where_they_are_used() -> None:
    assert seen(FlatDiffers(parameters())) is None
    assert "a flat run of elements of a" in str(seen(FlatDiffers(parameters()), flat=True))
    assert seen(PerLoss(parameters())) is None
    assert "if other parameters" in str(seen(PerLoss(parameters()), closure=True))
    assert "if other parameters" in str(seen(Sharp(parameters()), closure=True))
    with pytest.raises(SDPError, match=r"LBFGS\.step\(\) missing"):
        seen(optim.LBFGS(parameters()))


def test_nothing_else_changes() -> None:
    held = parameters()
    optimizer = PerElement(held, lr=0.5)
    held[0].grad = torch.ones(3, 2)
    optimizer.step()
    before = copy.deepcopy((optimizer.state_dict(), held[0].detach(), held[0].grad))
    calls: list[Any] = []
    hook = register_optimizer_step_pre_hook(lambda *_: calls.append(1))
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.rand(()), random.random(), np.random.rand()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    assert seen(Noisy(parameters())) is not None and seen(optimizer) is None
    assert (torch.rand(()), random.random(), np.random.rand()) == expected
    hook.remove()
    assert not calls
    torch.testing.assert_close((optimizer.state_dict(), held[0].detach(), held[0].grad), before, rtol=0, atol=0)


def test_each_class_is_tried_once_with_the_same_options(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[dict[str, Any]] = []
    monkeypatch.setattr(elementwise, "_problems", {})
    monkeypatch.setattr(elementwise, "problem_of", lambda optimizer, group, setting: tried.append(group))
    optimizer = Own(parameters(), momentum=0.9, name="a")
    scheduler = optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    for step in range(3):
        optimizer.param_groups[0]["momentum"] = 0.9 - step / 10  # as OneCycleLR does
        check_elementwise(optimizer)
        optimizer.step()
        scheduler.step()
    check_elementwise(Own(parameters(), lr=7.0, momentum=0.9, name="a"))
    assert len(tried) == 1
    optimizer.param_groups[0]["name"] = "b"
    check_elementwise(optimizer)
    assert len(tried) == 2
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "name": "c"})
    check_elementwise(optimizer)
    assert len(tried) == 3


def test_a_group_can_be_what_the_others_are_not() -> None:
    first, second = parameters()
    check_elementwise(timm.optim.Lion([{"params": [first]}, {"params": [second], "weight_decay": 0.1}], lr=1e-2))
    with pytest.raises(SDPError, match="differently from the whole"):
        check_elementwise(timm.optim.Lion([{"params": [first]}, {"params": [second], "caution": True}], lr=1e-2))
