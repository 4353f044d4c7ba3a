"""Functions that are replaced under their own names, and settings of the process, count from the next call on."""

from __future__ import annotations

import datetime
import functools
import importlib
import os
import types
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdp_compile.errors import CaptureError, SDPError
from tests.capture import outside_models
from tests.runtime.module.small import compiled


def scaled(h: torch.Tensor, by: float = 2.0) -> torch.Tensor:
    return h * by


def thrice(h: torch.Tensor) -> torch.Tensor:
    return h * 3


class Calling(outside_models.Small):
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return functional.relu(scaled(h)) * self.factor

    @property
    def factor(self) -> float:
        return 2.0


class Unit(nn.Module):
    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h * 2


class Holding(outside_models.Small):
    def __init__(self) -> None:
        super().__init__()
        self.unit = Unit()

    def between(self, h: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.unit(h)
        return out


class Mixed:
    def doubled(self, h: torch.Tensor) -> torch.Tensor:
        return h * 2


class Mixing(outside_models.Small, Mixed):
    """`Mixed` comes after `nn.Module` in the order in which attributes are looked up."""

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.doubled(h)


class Derived(Unit):
    """Inherits all that it does."""


class Deriving(Holding):
    def __init__(self) -> None:
        super().__init__()
        self.unit = Derived()


def assert_same(model: nn.Module, module: nn.Module) -> None:
    for rows in (4, 6):
        x = torch.randn(rows, 5)
        torch.testing.assert_close(module(x), model(x))


@pytest.mark.parametrize(
    ("kind", "owner", "name", "value"),
    [
        (Calling, "tests.capture.test_replaced", "scaled", thrice),
        (Calling, "scaled", "__defaults__", (5.0,)),
        (Calling, "scaled", "__code__", thrice.__code__),
        (Calling, "torch.nn.functional", "relu", torch.tanh),
        (Calling, Calling, "factor", property(lambda _: 3.0)),
        (Calling, Calling, "between", lambda _, h: h * 7),
        (Holding, Unit, "forward", lambda _, h: h * 3),
        (Mixing, Mixed, "doubled", lambda _, h: h * 3),
        (Mixing, Mixing, "doubled", lambda _, h: h * 3),
        (Deriving, Unit, "forward", lambda _, h: h * 3),
        (Deriving, Derived, "forward", lambda _, h: h * 3),
        (Holding, nn.Linear, "forward", lambda self, x: x @ self.weight.T),
    ],
    ids=[
        "function",
        "default",
        "code",
        "torch's",
        "property",
        "method",
        "part",
        "mixed",
        "mixing",
        "base",
        "derived",
        "layer",
    ],
)
def test_replaced_functions_count(
    kind: type[nn.Module], owner: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = kind()
    module = compiled(model, torch.randn(4, 5))
    assert_same(model, module)
    with monkeypatch.context() as patch:
        if owner == "scaled":
            patch.setattr(scaled, name, value)
        else:
            patch.setattr(importlib.import_module(owner) if isinstance(owner, str) else owner, name, value)
        assert_same(model, module)
    assert_same(model, module)


SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[], object], Callable[[], object]]] = {
    "threads": (torch.get_num_threads, lambda: torch.set_num_threads(3), lambda: torch.set_num_threads(1)),
    "deterministic": (
        torch.are_deterministic_algorithms_enabled,
        lambda: torch.use_deterministic_algorithms(True),
        lambda: torch.use_deterministic_algorithms(False),
    ),
    "flag": (
        lambda: torch.backends.cudnn.benchmark,
        lambda: setattr(torch.backends.cudnn, "benchmark", True),
        lambda: setattr(torch.backends.cudnn, "benchmark", False),
    ),
    "precision": (
        lambda: torch.get_float32_matmul_precision() == "high",
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("highest"),
    ),
    "variables": (
        lambda: len(os.environ),
        lambda: os.environ.update(SDP_TEST_MORE="1"),
        lambda: os.environ.pop("SDP_TEST_MORE"),
    ),
}


class Asking(outside_models.Small):
    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__()
        self.ask = ask

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * (1 + self.ask())


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_process_count(name: str) -> None:
    ask, change, reset = SETTINGS[name]
    torch.manual_seed(0)
    reset() if name != "variables" else None
    model = Asking(ask)
    module = compiled(model, torch.randn(4, 5))
    assert_same(model, module)
    change()
    try:
        assert_same(model, module)
    finally:
        reset()
    assert_same(model, module)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: datetime.datetime.now().microsecond, "datetime.now"),
        (lambda: uuid.uuid4().int % 7, "uuid.uuid4"),
        (lambda: os.path.exists("missing"), "os.path.exists"),
        (lambda: len(os.listdir()), "os.listdir"),
        (lambda: torch.backends.mkldnn.enabled, "answer differs while a model is captured"),
    ],
    ids=["clock", "uuid", "path", "file", "backend"],
)
def test_what_no_graph_can_ask_is_refused_by_line(ask: Callable[[], Any], words: str) -> None:
    with pytest.raises(CaptureError, match=rf"{words}.*" if " " in words else rf"calls {words}\(\) at .*\.py:\d+: "):
        compiled(Asking(ask), torch.randn(4, 5))


def test_inference_mode_is_refused_where_it_is_asked_for() -> None:
    model, x = Asking(torch.is_inference_mode_enabled), torch.randn(4, 5)
    module = compiled(model, x)
    torch.testing.assert_close(module(x), model(x))
    with torch.inference_mode(), pytest.raises(SDPError, match=r"is_inference_mode_enabled.*no graph follows it"):
        module(x)


def test_methods_of_an_instance_read_what_the_compiled_model_has() -> None:
    torch.manual_seed(0)
    model = outside_models.Small()
    model.gain = 2.0
    model.between = types.MethodType(lambda self, h: h * self.gain, model)  # type: ignore[method-assign]
    module = compiled(model, torch.randn(4, 5))
    for one in (model, module):
        one.gain = 3.0
    assert_same(model, module)
    for one in (model, module):
        one.between = types.MethodType(lambda self, h: h * 7 * self.gain, one)
    assert_same(model, module)


def passing_on(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(function)
    def passed_on(*args: Any) -> torch.Tensor:
        return function(*args)

    return passed_on


class Decorated(outside_models.Small):
    """Has attributes whose functions have the code of those that forward calls, as PEFT's models."""

    def __init__(self) -> None:
        super().__init__()
        self.other, self.again = passing_on(thrice), types.MethodType(passing_on(lambda _, h: h * 5), self)

    @passing_on
    def between(self, h: torch.Tensor) -> torch.Tensor:
        return self.again(h) + scaled(h)


def test_functions_of_one_decorator_are_told_apart() -> None:
    torch.manual_seed(0)
    model = Decorated()
    module = compiled(model, torch.randn(4, 5))
    assert_same(model, module)
    module.eval(), model.eval()
    assert_same(model, module)
