"""Values of buffers that Python code asks for are noted, and not taken for known once forward has written to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.errors import CaptureError
from tests.capture.models import run
from tests.runtime.module.small import compiled


class Sliced(nn.Module):
    """Starts at the value of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 6)
        self.register_buffer("start", torch.tensor(2))
        self.register_buffer("length", torch.tensor([3]))
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)
        self.register_buffer("ready", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = int(self.start)
        y: torch.Tensor = self.linear(x[:, first : first + self.length.item()])
        if self.start == 3 or self.ready.item() == 1 or self.scale.ge(0.75):
            return -y
        return y * float(self.scale) if self.start else y


def test_the_value_of_a_buffer_is_read_and_noted() -> None:
    model, x = Sliced(), torch.randn(4, 8)
    captured = capture(model, x)
    assert torch.equal(run(model, captured, "train", x), model(x))
    reads = {read.name: read.value for read in captured.programs["train"].reads if read.kind == "buffer"}
    assert reads == {"start": (int, 2), "length": (int, 3), "scale": (float, 0.5), "ready": (int, 0)}


@pytest.mark.parametrize("name", ["start", "scale", "ready"])
def test_a_compared_buffer_is_compared_at_every_call(name: str) -> None:
    torch.manual_seed(0)
    model, x = Sliced(), torch.randn(4, 8)
    module = compiled(model, x)
    for value in (3, 1, 3, 0):
        for one in (model, module):
            one.get_buffer(name).fill_(value)
        torch.testing.assert_close(module(x), model(x))


Use = Callable[[Any, torch.Tensor], torch.Tensor]


class Steps(nn.Module):
    """A layer whose forward writes to a buffer, and reads its value with Python."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.use, self.linear = use, nn.Linear(5, 2)
        self.register_buffer("count", torch.tensor(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.use(self, x))


def added(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.count += 1
    return x * int(module.count)


def assigned(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.count = module.count + 1
    return x * float(module.count)


def of_a_view(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.count.view(1)[0] += 1
    return x * module.count.item()


def without_a_gradient(module: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        module.count.detach().copy_(module.count * 2)
    return x + 1 if module.count > 3 else x


def through_data(module: Any, x: torch.Tensor) -> torch.Tensor:
    module.count.data.add_(1)
    for _ in range(module.count):
        x = torch.tanh(x)
    return x


def as_output(module: Any, x: torch.Tensor) -> torch.Tensor:
    torch.add(module.count, 1, out=module.count)
    return x * int(module.count)


def several(module: Any, x: torch.Tensor) -> torch.Tensor:
    torch._foreach_add_([module.count], 1)
    return x * int(module.count)


def compared_and_negated(module: Any, x: torch.Tensor) -> torch.Tensor:
    is_one = module.count == 1
    is_one.logical_not_()
    return x + 1 if is_one else x


def read_first(module: Any, x: torch.Tensor) -> torch.Tensor:
    count, is_large = int(module.count), module.count > 2
    module.count += 1
    return x * count + 1 if is_large else x * count


_WRITTEN = [added, assigned, of_a_view, without_a_gradient, through_data, as_output, several, compared_and_negated]


@pytest.mark.parametrize("use", [*_WRITTEN, read_first])
def test_a_buffer_that_was_written_has_no_known_value(use: Use) -> None:
    torch.manual_seed(0)
    model, x = Steps(use), torch.randn(4, 5)
    try:
        module = compiled(model, x)
    except CaptureError as error:
        assert use is not read_first
        assert "depends on tensor values at" in str(error) and use.__name__ in _FUNCTIONS
        return
    for _ in range(4):
        torch.testing.assert_close(module(x), model(x))
        assert torch.equal(module.count, model.count)


_FUNCTIONS = {one.__name__ for one in _WRITTEN}
