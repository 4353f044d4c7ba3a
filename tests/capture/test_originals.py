"""What hooks and functions read of the original model is what the compiled one has."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.capture.originals import ORIGINALS
from tests.capture.outside_models import Small
from tests.runtime.module.small import compiled

Hook = Callable[[nn.Module, Any, torch.Tensor], torch.Tensor]


def closing(model: nn.Module) -> Hook:
    return lambda _module, _inputs, out: out * model.scale


def weakly(model: nn.Module) -> Hook:
    reference = weakref.ref(model)
    return lambda _module, _inputs, out: out * reference().scale  # type: ignore[union-attr]


def in_a_list(model: nn.Module) -> Hook:
    held = [model]
    return lambda _module, _inputs, out: out * held[0].scale


def as_default(model: nn.Module) -> Hook:
    def hook(_module: nn.Module, _inputs: Any, out: torch.Tensor, model: nn.Module = model) -> torch.Tensor:
        return out * model.scale

    return hook


def of_tensors(model: nn.Module) -> Hook:
    weight = model.last.weight
    return lambda _module, _inputs, out: out * model.scale * weight.sum() + model.last(out).sum()


@pytest.mark.parametrize("make", [closing, weakly, in_a_list, as_default, of_tensors])
def test_hooks_see_the_compiled_model(make: Callable[[nn.Module], Hook]) -> None:
    torch.manual_seed(0)
    model = Small()
    model.scale = 2.0  # type: ignore[misc]
    model.first.register_forward_hook(make(model))
    module = compiled(model, torch.randn(4, 5))
    for scale, rows in ((2.0, 4), (3.0, 4), (3.0, 6), (2.0, 5)):
        for one in (model, module):
            one.scale = scale
            with torch.no_grad():
                one.get_parameter("last.weight").mul_(1.5)
        x = torch.randn(rows, 5)
        torch.testing.assert_close(module(x), model(x))


def test_functions_of_parts_and_modes() -> None:
    torch.manual_seed(0)
    model = Small()
    model.scale = 2.0  # type: ignore[misc]
    model.first.act = lambda h: h * model.scale if model.training else h
    model.between = lambda h: model.first.act(h)  # type: ignore[method-assign]
    module, x = compiled(model, torch.randn(4, 5)), torch.randn(4, 5)
    for training, scale in ((True, 2.0), (False, 2.0), (True, 4.0)):
        for one in (model, module):
            one.train(training).scale = scale
        torch.testing.assert_close(module(x), model(x))


def test_what_a_hook_leaves_in_the_model_is_in_the_compiled_one() -> None:
    model, x = Small(), torch.randn(4, 5)

    def leave(_module: nn.Module, _inputs: Any, out: torch.Tensor) -> None:
        model.loss = out.pow(2).mean()

    model.first.register_forward_hook(leave)
    module = compiled(model, x)
    assert not hasattr(model, "loss"), "no tensor without values stays behind"
    module(x), model(x)
    torch.testing.assert_close(module.loss, model.loss)


def test_hooks_of_the_compiled_model_may_hold_it() -> None:
    torch.manual_seed(0)
    model, x = Small(), torch.randn(4, 5)
    module = compiled(model, x)
    for one in (model, module):
        one.gain = 2.0
        one.get_submodule("first").register_forward_hook(lambda _module, _inputs, out, one=one: out * one.gain)
    torch.testing.assert_close(module(x), model(x))
    for one in (model, module):
        one.gain = 3.0
    torch.testing.assert_close(module(x), model(x))
    copied = copy.deepcopy(module)
    torch.testing.assert_close(copied(x), model(x))


def test_settings_and_modes_of_modules_outside_count() -> None:
    class Outside(nn.Module):
        gain = 2.0

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            return h * self.gain if self.training else h

    outside, model, x = Outside(), Small(), torch.randn(4, 5)
    outside.gain = 2.0
    model.first.register_forward_hook(lambda _module, _inputs, out: outside(out))
    module = compiled(model, x)
    changes: list[Callable[[], object]] = [
        lambda: setattr(outside, "gain", 3.0),
        outside.eval,
        lambda: outside.register_forward_hook(lambda _module, _inputs, out: out + 1),
    ]
    for change in changes:
        change()
        torch.testing.assert_close(module(x), model(x))


def test_copies_for_the_user_hold_nothing_of_capture() -> None:
    module = compiled(Small(), torch.randn(4, 5))
    assert ORIGINALS not in vars(module.full_model())
