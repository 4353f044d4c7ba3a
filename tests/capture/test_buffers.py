"""Buffers that forward assigns keep their values from call to call, wherever they are, or are refused by line."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.errors import CaptureError
from tests.runtime.module.small import compiled

Step = Callable[[Any, torch.Tensor], torch.Tensor]


class Keeps(nn.Module):
    """A layer whose forward does something with its buffers first."""

    def __init__(self, step: Step, **buffers: torch.Tensor | None) -> None:
        super().__init__()
        self.step, self.linear = step, nn.Linear(5, 2)
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.step(self, x))


class Twice(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.inner(x + 1)


def counted(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.count = module.count + 1
    return x * module.count


def averaged(module: Any, x: torch.Tensor) -> torch.Tensor:
    old = module.mean
    module.mean = 0.9 * module.mean + 0.1 * x.mean(0).detach()
    return x - old + module.mean


def swapped(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.one, module.two = module.two, module.one * 2
    module.two = module.two.flip(0)
    return x * module.one + module.two


def part_of_itself(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.square = module.square.t()
    return x + module.square[0]


def beside_an_empty_name(module: Any, x: torch.Tensor) -> torch.Tensor:
    if module.mask is None and module.other is None:
        module.count = module.count + 1
    return x * module.count


CASES: dict[str, tuple[Step, dict[str, torch.Tensor | None]]] = {
    "count": (counted, {"count": torch.zeros(())}),
    "average": (averaged, {"mean": torch.zeros(5)}),
    "swap": (swapped, {"one": torch.arange(5.0), "two": torch.ones(5)}),
    "view of itself": (part_of_itself, {"square": torch.arange(25.0).view(5, 5)}),
    "None before": (beside_an_empty_name, {"mask": None, "other": None, "count": torch.zeros(())}),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_assigned_buffers_keep_their_values(name: str, inside: bool) -> None:
    step, buffers = CASES[name]
    model = Keeps(step, **buffers)
    model = (Twice(model) if inside else model).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    module = compiled(model, (x,))
    for _ in range(3):
        x = torch.randn(4, 5, dtype=torch.float64)
        torch.testing.assert_close(module(x), model(x), rtol=1e-12, atol=1e-12)
        for key, buffer in model.named_buffers():
            torch.testing.assert_close(module.get_buffer(key), buffer, rtol=1e-12, atol=1e-12)


def grows(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.bank = torch.cat([module.bank, x.detach()])[-8:]
    return x - module.bank.mean(0)


def appended(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.bank = torch.cat([module.bank, x.detach().mean(0, keepdim=True)])
    return x


def broadcast(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.scale = module.scale + x.detach().mean(0)
    return x * module.scale


def converted(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.step_count = module.step_count + 0.5
    return x * module.step_count


def filled(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.first = x.detach()[0]
    return x


@pytest.mark.parametrize(
    ("step", "buffers", "words"),
    [
        (grows, {"bank": torch.zeros(4, 5)}, r"'{}bank' a float32\[8, 5\] instead of a float32\[4, 5\] at .*torch.cat"),
        (appended, {"bank": torch.zeros(1, 5)}, r"'{}bank' a float32\[[23], 5\] instead"),
        (broadcast, {"scale": torch.zeros(())}, r"'{}scale' a float32\[5\] instead of a float32\[\] at .*test_buffers"),
        (converted, {"step_count": torch.tensor(0)}, r"'{}step_count' a float32\[\] instead of a int64\[\]"),
        (filled, {"first": None}, r"assigns to its buffer '{}first' at .*test_buffers.*is None before"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_buffers_of_another_shape_or_dtype_are_refused(step: Step, buffers: Any, words: str, inside: bool) -> None:
    model = Keeps(step, **buffers)
    with pytest.raises(CaptureError, match=words.format("inner." if inside else "")):
        capture(Twice(model) if inside else model, torch.randn(4, 5))


def test_a_buffer_of_the_size_of_the_batch_fixes_the_batch() -> None:
    def remembered(module: Any, x: torch.Tensor) -> torch.Tensor:
        old, module.last = module.last, x.detach()
        return x + old

    model = Keeps(remembered, last=torch.zeros(4, 5))
    module, original = compiled(model, (torch.randn(4, 5),)), copy.deepcopy(model)
    for _ in range(2):
        x = torch.randn(4, 5)
        assert torch.allclose(module(x), original(x))
    assert any("all input sizes fixed, because: Resized" in note for note in module.capture.notes)


def test_a_buffer_under_two_names_cannot_be_assigned() -> None:
    model = nn.Sequential(Keeps(counted, count=torch.zeros(())), nn.Linear(2, 5), Keeps(counted, count=None))
    model[2].count = model[0].count
    with pytest.raises(CaptureError, match=r"'0\.count' .*has several names"):
        capture(model, torch.randn(4, 5))
