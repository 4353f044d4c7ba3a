"""What forward reads through variables outside of the model counts at every call, wherever it is kept."""

from __future__ import annotations

import enum
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile import CaptureError, NeuronPolicy, sdp_compile
from sdp_compile.capture import capture
from tests.capture import python_models as models


@dataclass
class Settings:
    scale: float = 2.0


class Large:
    """Too much to be compared as a whole at each call."""

    def __init__(self) -> None:
        self.scale = 2.0
        self.words = {str(number): number for number in range(5000)}
        self.inner = Settings()


class Constants:
    scale = 2.0
    table: dict[str, float] = {"scale": 2.0}  # noqa: RUF012


class Helper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.calls, self.seen = 2.0, 0, list[int]()


class Kind(enum.Enum):
    ONE = 2.0


NAMESPACE = SimpleNamespace(scale=2.0)
ARGUMENTS = Namespace(model=Namespace(scale=2.0))
NESTED = {"model": {"scale": 2.0, "sizes": [1, 2]}}
DATACLASS = Settings()
LARGE = Large()
HELPER = Helper()
NUMBER = 2.0


def enclosed() -> tuple[Callable[[], float], Callable[[float], None]]:
    scale = 2.0

    def read() -> float:
        return scale

    def write(value: float) -> None:
        nonlocal scale
        scale = value

    return read, write


READ, WRITE = enclosed()


def taken() -> float:
    settings = DATACLASS
    return settings.scale


READS: dict[str, tuple[Callable[[], float], Callable[[float], object]]] = {
    "number": (lambda: NUMBER, lambda value: globals().update(NUMBER=value)),
    "namespace": (lambda: NAMESPACE.scale, lambda value: setattr(NAMESPACE, "scale", value)),
    "namespace in a namespace": (lambda: ARGUMENTS.model.scale, lambda value: setattr(ARGUMENTS.model, "scale", value)),
    "dictionary in a dictionary": (
        lambda: NESTED["model"]["scale"],  # type: ignore[return-value]
        lambda value: NESTED["model"].update(scale=value),
    ),
    "dataclass": (lambda: DATACLASS.scale, lambda value: setattr(DATACLASS, "scale", value)),
    "dataclass under another name": (taken, lambda value: setattr(DATACLASS, "scale", value)),
    "attribute of a large object": (lambda: LARGE.scale, lambda value: setattr(LARGE, "scale", value)),
    "object in a large object": (lambda: LARGE.inner.scale, lambda value: setattr(LARGE.inner, "scale", value)),
    "class": (lambda: Constants.scale, lambda value: setattr(Constants, "scale", value)),
    "dictionary of a class": (lambda: Constants.table["scale"], lambda value: Constants.table.update(scale=value)),
    "another module": (lambda: HELPER.scale, lambda value: setattr(HELPER, "scale", value)),
    "enclosing function": (READ, WRITE),
}


class Scaled(models.Small):
    def __init__(self, read: Callable[[], float]) -> None:
        super().__init__()
        self.read = read

    def between(self, h: torch.Tensor) -> torch.Tensor:
        return h * self.read() if Kind.ONE.value == 2.0 else h


@pytest.fixture(params=READS)
def variable(request: pytest.FixtureRequest) -> Iterator[tuple[Callable[[], float], Callable[[float], object]]]:
    read, write = READS[request.param]
    write(2.0)
    yield read, write
    write(2.0)


def test_a_variable_that_changes_counts(variable: tuple[Callable[[], float], Callable[[float], object]]) -> None:
    read, write = variable
    model, x = Scaled(read), torch.randn(4, 5)
    module = sdp_compile(model, NeuronPolicy(coverage=1.0), x, workers=1, rank=0)
    for value in (2.0, 3.0, 0.5, 2.0, -1.5):
        write(value)
        assert read() == value
        torch.testing.assert_close(module(x), model(x))


def count() -> None:
    HELPER.calls += 1


def collect() -> None:
    HELPER.seen.append(1)


def count_in_class() -> None:
    Constants.scale += 1


def count_in_large() -> None:
    LARGE.scale += 1


CHANGES: dict[str, tuple[Callable[[], None], str]] = {
    "number of a module": (count, "'calls' of global variable 'HELPER'"),
    "list of a module": (collect, "'seen' of global variable 'HELPER'"),
    "number of a class": (count_in_class, "'scale' of class Constants"),
    "number of a large object": (count_in_large, "'LARGE'"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_variable_that_forward_changes_is_refused(name: str) -> None:
    change, what = CHANGES[name]

    class Changing(models.Small):
        def between(self, h: torch.Tensor) -> torch.Tensor:
            change()
            return h

    def held() -> Any:
        return HELPER.calls, list(HELPER.seen), Constants.scale, LARGE.scale

    before = held()
    with pytest.raises(CaptureError, match=what) as caught:
        capture(Changing(), torch.randn(4, 5))
    assert "test_variables.py:" in str(caught.value)
    assert held() == before
