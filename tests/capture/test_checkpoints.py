"""Regions of torch.utils.checkpoint: their gradients, and which nodes carry their number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sdp_compile.capture import capture
from sdp_compile.capture.checkpoints import mark_regions, region_of
from sdp_compile.capture.observe import CHECKPOINT
from tests.capture.models import Then, calls, gradients, run
from tests.graph_text import parse


def recomputed(function: Callable[..., Any], *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_keep_their_gradients(reentrant: bool) -> None:
    inner = nn.Linear(6, 6)
    model = Then(lambda x: checkpoint(inner, x, use_reentrant=reentrant))
    model.inner = inner  # the function above reaches it otherwise; still it must be trained
    captured, x = capture(model, torch.randn(4, 6)), torch.randn(4, 6)
    model(x).sum().backward()  # reentrant checkpoints know no torch.autograd.grad
    for name, found in gradients(model, run(model, captured, "train", x).sum()).items():
        torch.testing.assert_close(found, model.get_parameter(name).grad)
    assert {region_of(node) for node in calls(captured)} == {None, 0}


def regions(function: Callable[..., Any]) -> dict[str, list[int | None]]:
    """The region of each call in training, by the operator's name."""
    found: dict[str, list[int | None]] = {}
    for node in calls(capture(Then(function), torch.randn(4, 6))):
        found.setdefault(node.target._schema.name.removeprefix("aten::"), []).append(region_of(node))
    return found


def test_each_region_has_a_number() -> None:
    found = regions(lambda y: recomputed(torch.cos, recomputed(torch.sin, y)).tanh())
    assert found == {"linear": [None], "sin": [0], "cos": [1], "tanh": [None]}


def test_of_nested_regions_the_outermost_counts() -> None:
    found = regions(lambda y: recomputed(lambda z: recomputed(torch.sin, z).cos(), y).tanh())
    assert found == {"linear": [None], "sin": [0], "cos": [0], "tanh": [None]}


def test_autocast_is_entered_and_left_inside_of_the_region() -> None:
    def rough(y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return y @ y.t()

    captured = capture(Then(lambda y: recomputed(rough, y)), torch.randn(4, 6))
    numbers = {node.name: region_of(node) for node in calls(captured)}
    assert numbers == {"linear": None, "_enter_autocast": 0, "t": 0, "matmul": 0, "_exit_autocast": 0}


def test_writes_to_state_happen_once_outside_of_the_region() -> None:
    graph = parse("""
        seen: f32[4] = get_attr
        new: f32[4] = aten.add.Tensor(seen, 1)
        copied: f32[4] = aten.copy_(seen, new)
        other: f32[4] = aten.relu(new)
        return other""")
    for node in graph.nodes:
        node.meta["custom"] = {CHECKPOINT: 3} if node.name != "other" else {"another tool's": 1}
    mark_regions(graph)
    assert {node.name: region_of(node) for node in graph.nodes if node.op == "call_function"} == {
        "new": 3,
        "copied": None,
        "other": None,
    }
    assert region_of(next(iter(graph.nodes))) is None, "state is not recomputed"
