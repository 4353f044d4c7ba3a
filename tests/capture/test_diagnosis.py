"""What a failed capture says: the user's line, the module and what to do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.capture.diagnosis import (
    calling_line,
    explain,
    first_line,
    is_data_dependent,
    is_user_file,
    located,
    user_line,
)
from sdp_compile.errors import CaptureError
from tests.capture.models import Residual, Then


def branch(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.sum() > 0 else x


def number(x: torch.Tensor) -> torch.Tensor:
    return x[: int(x.sum())] * 2 if int(x.sum()) else x


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (branch, ["x.sum() > 0", "control flow or a shape depends on tensor values", "torch.where"]),
        (number, ["int(x.sum())", "depends on tensor values"]),
        (lambda x: [x][3], ["IndexError", "[x][3]"]),
    ],
    ids=["branch on values", "number from values", "a mistake in forward"],
)
def test_what_cannot_be_captured_is_named(function: Callable[..., Any], words: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Then(function), torch.randn(4, 6))
    for word in ("Then cannot be captured", "test_diagnosis.py", *words):
        assert word in str(caught.value)


def test_wrong_shapes_name_the_line_of_the_model() -> None:
    with pytest.raises(CaptureError, match=r"models\.py:\d+: .*shapes and dtypes of training"):
        capture(Residual(), (torch.randn(4, 5),))


MESSAGE = "first\nsecond"


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError(MESSAGE)


def failed(model: nn.Module, *inputs: Any) -> BaseException:
    with pytest.raises(Exception) as caught:
        model(*inputs)
    return caught.value


def test_the_module_that_failed_is_named_by_its_path() -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(Failing()))
    text = explain(model, failed(model, torch.ones(1)))
    assert "its forward raised ZeroDivisionError: first at " in text and "(module '1.0')" in text
    assert "second" not in text


def test_the_users_line_is_the_innermost_outside_of_torch() -> None:
    error = failed(nn.Sequential(nn.Linear(2, 3)), torch.ones(4))
    line = user_line(error.__traceback__)
    assert line is not None and re.fullmatch(rf"{re.escape(__file__)}:\d+: model\(\*inputs\)", line)
    assert user_line(None) is None


def test_the_calling_line_names_file_and_module() -> None:
    class Asking(nn.Module):
        def forward(self, kind: type[nn.Module]) -> str:
            return calling_line(kind)

    line = inspect.getsourcelines(Asking.forward)[1] + 1
    assert Asking()(Asking) == f"{__file__}:{line}: return calling_line(kind)"
    wrapper = nn.Sequential(Asking())
    assert wrapper(nn.Sequential) == f"{__file__}:{line}: return calling_line(kind) (module '0')"


def test_lines_and_modules_are_joined_where_there_are_any() -> None:
    assert located("a.py:1: f()", "up") == "a.py:1: f() (module 'up')"
    assert located("a.py:1", "") == "a.py:1" and located(None, "up") == "(module 'up')" and located(None, "") == ""


def test_files_of_torch_and_of_this_package_are_not_the_users() -> None:
    assert is_user_file(__file__) and is_user_file("/site-packages/transformers/models/gpt2/modeling_gpt2.py")
    for other in (nn.__file__, inspect.getfile(capture), "<string>", "<frozen importlib._bootstrap>"):
        assert not is_user_file(str(other))


def test_data_dependence_is_found_in_causes() -> None:
    try:
        try:
            raise RuntimeError("Could not guard on data-dependent expression")
        except RuntimeError as inner:
            raise ValueError("export failed") from inner
    except ValueError as outer:
        assert is_data_dependent(outer)
    assert not is_data_dependent(ValueError("a shape is wrong"))


def test_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n  a \nb")) == "ValueError: a" and first_line(KeyError()) == "KeyError"
    assert len(first_line(ValueError("x" * 1000))) < 320
