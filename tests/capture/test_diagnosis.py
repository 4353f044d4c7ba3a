"""What a failed capture says: the user's line, the module and what to do."""

from __future__ import annotations

import dataclasses
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
        (lambda x: x + x.detach().numpy().mean(), ["turns a tensor into a NumPy array at", "Use torch's operators"]),
    ],
    ids=["branch on values", "number from values", "a mistake in forward", "an array"],
)
def test_what_cannot_be_captured_is_named(function: Callable[..., Any], words: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Then(function), torch.randn(4, 6))
    for word in ("Then cannot be captured", "test_diagnosis.py", *words):
        assert word in str(caught.value)


def test_an_average_over_all_batches_is_named() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, momentum=None))
    with pytest.raises(CaptureError, match=r"BatchNorm1d with momentum=None.*Give it a number"):
        capture(model, torch.randn(4, 5))


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


@dataclasses.dataclass
class Out:
    logits: torch.Tensor


class Plain:
    def __init__(self, x: torch.Tensor) -> None:
        self.x = x


def packed(y: torch.Tensor) -> torch.Tensor:
    lengths = y[:, 0].long()
    rows = nn.utils.rnn.pack_padded_sequence(y.unsqueeze(-1), lengths, batch_first=True, enforce_sorted=False)
    return nn.GRU(1, 2)(rows)[0].data


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (Out, ["returns a ", "test_diagnosis.Out", "torch.export.register_dataclass(Out)"]),
        (lambda y: {"list": [Out(y)]}, ["test_diagnosis.Out", "torch.export.register_dataclass(Out)"]),
        (Plain, ["test_diagnosis.Plain", "register_pytree_node"]),
        (lambda y: (row for row in y), ["returns a generator", "Return a tuple or dict"]),
        (lambda y: torch.vmap(torch.func.jacrev(torch.sin))(y), ["a transform of torch.func at", "test_diagnosis.py"]),
        (lambda y: torch.func.linearize(torch.sin, y)[1](y), ["where capture cannot follow", "torch.func.linearize"]),
        (packed, ["PackedSequence at ", "test_diagnosis.py", "padded tensor"]),
    ],
    ids=["dataclass", "dataclass inside", "class", "generator", "jacrev", "linearize", "packed sequence"],
)
def test_what_torch_cannot_take_is_named_with_a_remedy(function: Callable[..., Any], words: list[str]) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Then(function), torch.randn(4, 6))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("value", [Plain(torch.ones(6)), torch.float32, slice(0, 2), len])
def test_inputs_that_are_no_values_of_a_graph_are_named(value: Any) -> None:
    class Two(nn.Linear):
        def forward(self, x: torch.Tensor, other: Any) -> torch.Tensor:
            return super().forward(x)

    with pytest.raises(CaptureError, match=f"example_inputs hold a .*{type(value).__name__}, which is no input of a"):
        capture(Two(6, 6), (torch.randn(4, 6), value))
