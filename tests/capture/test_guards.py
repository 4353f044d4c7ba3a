"""The conditions on sizes that a graph holds under."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.runtime.module.calls import compiled_guards


class Branching(nn.Module):
    """Takes another path where a condition on its inputs holds."""

    def __init__(self, condition: Callable[..., Any]) -> None:
        super().__init__()
        self.condition = condition
        self.linear = nn.Linear(5, 5)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(inputs[0])
        return y * 2 if self.condition(*inputs) else y


@pytest.mark.parametrize(
    ("condition", "shapes", "guards"),
    [
        (lambda x: x.shape[1] == 7, [(3, 6, 5)], {"x.shape[1] != 7", "2 <= x.shape[0]", "2 <= x.shape[1]"}),
        (lambda x: x.shape[1] > 4, [(3, 6, 5)], {"x.shape[1] > 4", "2 <= x.shape[0]", "5 <= x.shape[1]"}),
        (lambda x: x.shape[1] % 2 == 0, [(3, 6, 5)], {"(x.shape[1] % 2) == 0", "2 <= x.shape[0]", "2 <= x.shape[1]"}),
        (
            lambda x, y: x.shape[0] != y.shape[0],
            [(3, 5), (4, 2)],
            {"x.shape[0] != y.shape[0]", "2 <= x.shape[0]", "2 <= y.shape[0]", "2 <= y.shape[1]"},
        ),
    ],
)
def test_every_condition_is_kept(condition: Any, shapes: list[Any], guards: set[str]) -> None:
    program = capture(Branching(condition), tuple(torch.randn(shape) for shape in shapes)).programs["train"]
    names = {spec.name: letter for spec, letter in zip(program.inputs.values(), "xy", strict=False)}
    found = set()
    for guard in program.guards:
        for name, letter in names.items():
            guard = guard.replace(f"{name}.shape", f"{letter}.shape")
        found.add(guard)
    assert found == guards


def test_the_memory_of_an_input_is_no_condition() -> None:
    x = torch.randn(4, 9)[:, 2:7]
    program = capture(nn.Linear(5, 3), x).programs["train"]
    assert all("stride" not in guard and "L[" not in guard for guard in program.guards)
    assert x.stride() == (9, 1)


def test_a_size_of_one_is_another_path() -> None:
    program = capture(Branching(lambda x: x.shape[0] == 1), torch.randn(1, 5)).programs["train"]
    assert program.inputs[0].dims == ("n0", 5) and any("2 <=" in guard for guard in program.guards)


def test_conditions_on_nested_inputs() -> None:
    class Nested(nn.Module):
        def forward(self, batch: dict[str, Any], *, more: list[torch.Tensor]) -> torch.Tensor:
            a, b = batch["pair"]
            return a.sum() if len(more) == 1 and b.shape[0] == more[0].shape[0] * 2 else a.mean()

    inputs = {"batch": {"pair": (torch.randn(3, 2), torch.randn(5, 2))}, "more": [torch.randn(4, 2)]}
    program = capture(Nested(), inputs).programs["eval"]
    names = [spec.name for spec in program.inputs.values()]
    violated = compiled_guards(program.guards, names)
    assert violated([(3, 2), (5, 2), (4, 2)]) == -1
    assert violated([(3, 2), (8, 2), (4, 2)]) >= 0


def test_the_first_condition_that_fails_is_told() -> None:
    violated = compiled_guards(("2 <= x.shape[0]", "x.shape[1] != y.shape[0]"), ["x", "y"])
    assert [violated(shapes) for shapes in ([(2, 3), (4,)], [(1, 4), (4,)], [(2, 4), (4,)])] == [-1, 0, 1]
