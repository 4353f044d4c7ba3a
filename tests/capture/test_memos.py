"""Functions with `functools.lru_cache` are computed at each call, where that is the same, and refused by line else."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from sdp_compile.errors import CaptureError, SDPError
from tests.capture.test_caches import assert_as_original, base
from tests.runtime.module.small import compiled

LIMIT = 10.0


def powers(n: int, by: float) -> torch.Tensor:
    return (torch.arange(n) / by).cos()[:, None]


@functools.lru_cache(maxsize=4)
def by_numbers(n: int, by: float) -> torch.Tensor:
    return powers(n, by)


@functools.cache
def by_global(n: int) -> torch.Tensor:
    return powers(n, LIMIT)


@functools.cache
def norm_of(module: Any) -> torch.Tensor:
    return module.weight.detach().norm()  # type: ignore[no-any-return]


@functools.cache
def mean_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().mean()


@functools.cache
def inverse(n: int) -> float:
    return 1 / n


class Helper:
    @functools.cache  # noqa: B019
    def table(self, n: int) -> torch.Tensor:
        return powers(n, 10.0)

    @staticmethod
    @functools.cache
    def static(n: int) -> torch.Tensor:
        return powers(n, 9.0)


class Cached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.base, self.helper = nn.Linear(5, 6), nn.Linear(6, 2), 10.0, Helper()
        self.own = functools.cache(lambda n: powers(n, 8.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        result: torch.Tensor = self.last(h * self.factor(h))
        return result

    def factor(self, h: torch.Tensor) -> Any:
        n = len(h)
        return (
            by_numbers(n, self.base)
            + by_global(n)
            + self.helper.table(n)
            + self.helper.static(n)
            + inverse(n)
            + self.own(n)
        )


class OfModule(Cached):
    def factor(self, _h: torch.Tensor) -> Any:
        return norm_of(self.last)


class OfTensor(Cached):
    def factor(self, _h: torch.Tensor) -> Any:
        return mean_of(self.last.weight)


class OfSelf(Cached):
    @functools.cache  # noqa: B019
    def norm(self) -> torch.Tensor:
        return self.last.weight.detach().norm()

    def factor(self, _h: torch.Tensor) -> Any:
        return self.norm()


class Method(Cached):
    @functools.cache  # noqa: B019
    def table(self, n: int) -> torch.Tensor:
        return powers(n, self.base)

    def factor(self, h: torch.Tensor) -> Any:
        return self.table(len(h))


class Writing(Cached):
    def factor(self, h: torch.Tensor) -> Any:
        return by_numbers(len(h), 3.0).add_(1)


FUNCTIONS: tuple[Any, ...] = (by_numbers, by_global, norm_of, mean_of, inverse, Helper.table, Helper.static)


@pytest.fixture(autouse=True)
def _empty() -> None:
    for function in (*FUNCTIONS, OfSelf.norm, Method.table):
        function.cache_clear()


@pytest.mark.parametrize("used", [False, True])
def test_what_follows_from_arguments_is_computed_again(used: bool) -> None:
    model, four, six = Cached(), torch.randn(4, 5), torch.randn(6, 5)
    if used:
        model(four)
    assert_as_original(model, [four, six, base(5.0), four, six, base(10.0), four], four)


def test_nothing_of_a_capture_stays_in_the_caches() -> None:
    originals = [vars(Helper)["table"], by_numbers, vars(Helper)["static"]]
    model, x = Cached(), torch.randn(4, 5)
    compiled(model, x)
    assert [vars(Helper)["table"], by_numbers, vars(Helper)["static"]] == originals
    assert all(function.cache_info().currsize == 0 for function in (by_numbers, by_global, Helper.table))
    assert not isinstance(by_numbers(4, 10.0), FakeTensor) and by_numbers(4, 10.0).device.type == "cpu"


@pytest.mark.parametrize(("kind", "function"), [(OfModule, "norm_of"), (OfTensor, "mean_of"), (OfSelf, "OfSelf.norm")])
@pytest.mark.parametrize("used", [False, True])
def test_what_follows_from_weights_is_refused_by_line(kind: Any, function: str, used: bool) -> None:
    model, x = kind(), torch.randn(4, 5)
    if used:
        model(x)
    with pytest.raises(CaptureError, match=rf"parameters .* in the cache of {function}\(\) at .*test_memos.py:\d+: "):
        compiled(model, x)


def test_settings_that_the_arguments_do_not_hold_are_refused_when_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    four, six = torch.randn(4, 5), torch.randn(6, 5)
    assert_as_original(Method(), [four, base(5.0), six, six], four)
    with pytest.raises(SDPError, match=r"the cache of Method.table\(\) holds what an earlier call kept .*test_memos"):
        assert_as_original(Method(), [four, base(5.0), four], four)
    model = Cached()
    module = compiled(model, four)
    torch.testing.assert_close(module(four), model(four))
    monkeypatch.setattr("tests.capture.test_memos.LIMIT", 5.0)
    torch.testing.assert_close(module(six), model(six))
    with pytest.raises(SDPError, match=r"the cache of by_global\(\) holds"):
        module(four)


def test_writes_to_results_are_refused() -> None:
    with pytest.raises(CaptureError, match=r"writes to what by_numbers\(\) keeps, called at .*test_memos.*clone"):
        compiled(Writing(), torch.randn(4, 5))
