"""Tensors that forward keeps by key may follow from sizes, constants and constant buffers only."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.errors import CaptureError, SDPError
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


class Tabled(nn.Module):
    """Keeps a table for each number of rows, which follows from settings too."""

    def __init__(self, key: Callable[[Any, int], Any], fill: Callable[[Any, int], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.base, self.scale = nn.Linear(5, 6), nn.Linear(6, 2), 10.0, 1.0
        self.key, self.fill = key, fill
        self.cache: dict[Any, Any] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, key = self.first(x), self.key(self, len(x))
        if key not in self.cache:
            self.cache[key] = self.fill(self, len(x))
        result: torch.Tensor = self.last(h * self.cache[key][: len(x)] * self.scale)
        return result


def powers(module: Any, n: int) -> torch.Tensor:
    return (torch.arange(n) / module.base).cos()[:, None]


def listing(module: Any, _n: int) -> torch.Tensor:
    return torch.tensor([module.base] * 6)[None]


def by_mode(module: Any, _n: int) -> torch.Tensor:
    return torch.full((1, 6), 2.0 if module.training else 3.0)


def ramp(_module: Any, n: int) -> torch.Tensor:
    return torch.linspace(0, 1, n)[:, None]


def by_rows(_module: Any, n: int) -> Any:
    return n


def by_text(_module: Any, n: int) -> Any:
    return f"{n} rows"


def by_all(module: Any, n: int) -> Any:
    return n, module.base


def by_nothing(_module: Any, _n: int) -> Any:
    return "table"


def assert_as_original(model: nn.Module, steps: list[Any], example: torch.Tensor) -> None:
    """Calls and changes both, in evaluation where there are no gradients: the same results each time."""
    module = compiled(model, example)
    for step in steps:
        if isinstance(step, torch.Tensor):
            torch.testing.assert_close(module(step), model(step))
        else:
            step(model), step(module)


def base(value: float) -> Callable[[Any], None]:
    return lambda model: setattr(model, "base", value)


def test_what_a_changed_setting_does_not_reach_is_as_in_the_original() -> None:
    four, six = torch.randn(4, 5), torch.randn(6, 5)
    rescaled = [four, lambda model: setattr(model, "scale", 2.0), four, six, four]
    assert_as_original(Tabled(by_rows, powers), rescaled, four)
    assert_as_original(
        Tabled(by_all, powers), [four, base(5.0), four, six, base(10.0), four, base(7.0), six, four], four
    )
    assert_as_original(Tabled(by_rows, powers), [base(5.0), four, four, six], four)
    assert_as_original(Tabled(by_rows, powers), [four, base(5.0), six], four)


def test_what_is_assigned_anew_is_filled_anew() -> None:
    four, six = torch.randn(4, 5), torch.randn(6, 5)
    emptied = [four, base(5.0), lambda model: setattr(model, "cache", {}), four, six]
    assert_as_original(Tabled(by_rows, powers), emptied, four)
    used = Tabled(by_rows, powers)
    used(four)
    assert_as_original(used, emptied, four)


@pytest.mark.parametrize(
    ("key", "fill", "steps"),
    [
        (by_rows, powers, [4, base(5.0), 4]),
        (by_rows, powers, [base(5.0), 4, 6, base(7.0), 6]),
        (by_text, powers, [4, base(5.0), 4]),
        (by_rows, listing, [4, base(5.0), 4]),
        (by_nothing, by_mode, [4, lambda model: model.eval(), 4]),
        (by_nothing, ramp, [6, 4]),
    ],
)
def test_what_the_original_would_take_from_an_earlier_call_is_refused_by_line(
    key: Any, fill: Any, steps: list[Any]
) -> None:
    torch.manual_seed(0)
    steps = [torch.randn(step, 5) if isinstance(step, int) else step for step in steps]
    with pytest.raises(SDPError, match=r"attribute 'cache' of the model holds .* at .*test_caches.py:\d+: "):
        assert_as_original(Tabled(key, fill), steps, torch.randn(4, 5))


def test_copies_know_what_was_kept() -> None:
    module, x = compiled(Tabled(by_rows, powers), torch.randn(4, 5)), torch.randn(4, 5)
    module(x)
    module.base = 5.0
    with pytest.raises(SDPError, match="attribute 'cache' of the model holds"):
        copy.deepcopy(module)(x)


@pytest.mark.parametrize("used", [False, True])
def test_writes_to_what_is_kept_are_refused(used: bool) -> None:
    class Writing(Tabled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result = super().forward(x)
            self.cache[len(x)].mul_(2)
            return result

    model, x = Writing(by_rows, powers), torch.randn(4, 5)
    if used:
        model(x)
    with pytest.raises(CaptureError, match="neither a parameter nor a buffer at" if used else "attribute 'cache' of"):
        compiled(model, x)


def test_dictionaries_in_dictionaries_are_caches_too() -> None:
    class Nested(Tabled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = self.cache.setdefault(str(x.device), {})
            if len(x) not in kept:
                kept[len(x)] = self.fill(self, len(x))
            result: torch.Tensor = self.last(self.first(x) * kept[len(x)])
            return result

    four, six = torch.randn(4, 5), torch.randn(6, 5)
    assert_as_original(Nested(by_rows, powers), [four, six, four, base(5.0), torch.randn(7, 5)], four)
    with pytest.raises(SDPError, match="attribute 'cache' of the model holds"):
        assert_as_original(Nested(by_rows, powers), [four, six, base(5.0), six], four)
