"""Tensors that forward keeps by key may follow from sizes, constants and constant buffers only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.errors import CaptureError
from tests.runtime.module.small import compiled

Make = Callable[[Any, torch.Tensor], torch.Tensor]


class Caching(nn.Module):
    """Scales its features by what it keeps for each number of rows."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self.first, self.last, self.make = nn.Linear(5, 6), nn.Linear(6, 2), make
        self.register_buffer("frequencies", torch.linspace(0.5, 1.5, 6))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(()))
        self.cache: dict[int, tuple[torch.Tensor, int]] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean()
        h = self.first(x)
        if len(h) not in self.cache:
            self.cache[len(h)] = self.make(self, h), len(h)
        result: torch.Tensor = self.last(h * self.cache[len(h)][0])
        return result


def linear(_module: Any, h: torch.Tensor) -> torch.Tensor:
    return torch.linspace(0, 1, len(h))[:, None]


def listed(_module: Any, h: torch.Tensor) -> torch.Tensor:
    return torch.tensor([1.0, 2.0] * 3).to(h)


def like(_module: Any, h: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(h).cumsum(0) + h.new_zeros(6)


def rotary(module: Any, h: torch.Tensor) -> torch.Tensor:
    return torch.outer(torch.arange(len(h), device=h.device), module.frequencies).cos()


@pytest.mark.parametrize("make", [linear, listed, like, rotary])
def test_what_follows_from_sizes_and_constants_is_computed_again(make: Make) -> None:
    torch.manual_seed(0)
    model, x = Caching(make), torch.randn(4, 5)
    module = compiled(model, x)
    for rows in (4, 4, 6, 7, 4):
        x = torch.randn(rows, 5)
        torch.testing.assert_close(module(x), model(x))


def of_inputs(_module: Any, h: torch.Tensor) -> torch.Tensor:
    return h.detach().mean()


def written(_module: Any, h: torch.Tensor) -> torch.Tensor:
    kept = torch.zeros(6, device=h.device)
    kept.add_(h.detach().mean(0))
    return kept


def of_a_parameter(module: Any, _h: torch.Tensor) -> torch.Tensor:
    return module.first.weight.detach().norm()  # type: ignore[no-any-return]


def of_a_counter(module: Any, _h: torch.Tensor) -> torch.Tensor:
    return module.calls * 2  # type: ignore[no-any-return]


def of_an_assigned_buffer(module: Any, _h: torch.Tensor) -> torch.Tensor:
    return module.mean + 1  # type: ignore[no-any-return]


def drawn(_module: Any, h: torch.Tensor) -> torch.Tensor:
    return torch.rand_like(h[0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (of_inputs, "a tensor that depends on its inputs"),
        (written, "a tensor that depends on its inputs"),
        (of_a_parameter, "parameters"),
        (of_a_counter, "changing buffers"),
        (of_an_assigned_buffer, "changing buffers"),
        (drawn, "random numbers"),
    ],
)
def test_what_a_later_call_would_compute_otherwise_is_refused(make: Make, words: str) -> None:
    with pytest.raises(
        CaptureError, match=rf"{words}.* for later calls in attribute 'cache' of the model at .*: self.cache\["
    ):
        compiled(Caching(make), torch.randn(4, 5))


class Biased(nn.Module):
    """Adds rows of a parameter, which it keeps in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
        self.biases = nn.Parameter(torch.randn(3, 6))
        self.register_buffer("order", torch.tensor([2, 0, 1, 1]))
        self.cache: dict[str, torch.Tensor] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or self.training:
            rows = self.biases[self.order]
        else:
            if "cpu" not in self.cache:
                self.cache["cpu"] = self.biases[self.order]
            rows = self.cache["cpu"]
        result: torch.Tensor = self.last(self.first(x) + rows)
        return result


class Clearing(Biased):
    """As timm's LeViT."""

    def train(self, mode: bool = True) -> Clearing:
        super().train(mode)
        if mode:
            self.cache = {}
        return self


def test_what_train_clears_may_follow_from_parameters_in_evaluation() -> None:
    torch.manual_seed(0)
    model, x = Clearing(), torch.randn(4, 5)
    module = compiled(model, x)
    for _ in range(2):
        with torch.no_grad():
            model.eval(), module.eval()
            torch.testing.assert_close(module(x), model(x))
            torch.testing.assert_close(module(x), model(x))
            model.train(), module.train()
            for one in (model, module):
                one.biases.add_(1)
    with (
        torch.no_grad(),
        pytest.raises(CaptureError, match="parameters or changing buffers for later calls in attribute 'cache'"),
    ):
        compiled(Biased(), x).eval()(x)
