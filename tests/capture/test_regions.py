"""Regions with their own gradient or autocast mode become part of the one graph and keep their meaning."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from sdp_compile import check
from sdp_compile.capture import capture
from sdp_compile.capture.regions import (
    autocast_devices,
    enter_autocast,
    exit_autocast,
    inline_regions,
    restored_autocast,
)
from sdp_compile.errors import CaptureError
from tests.capture.models import Then, calls, gradients, run
from tests.graph_text import parse, text_of


def partly_detached(y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        scale, half = y.abs().mean(), y / 2
    return y * scale + half


def gradient_again(y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        half = y / 2
        with torch.enable_grad():
            return half * y


def in_no_grad(y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = y @ y.t()
    return y + rough.float().sum()


@pytest.mark.parametrize("function", [partly_detached, gradient_again, in_no_grad])
def test_gradients_stop_where_the_model_stops_them(function: Callable[..., Any]) -> None:
    model, x = Then(function), torch.randn(4, 6)
    captured = capture(model, x)
    assert not any(isinstance(node.target, torch._ops.HigherOrderOperator) for node in calls(captured))
    found, expected = run(model, captured, "train", x), model(x)
    assert torch.equal(found, expected)
    for one, other in zip(
        gradients(model, found.square().sum()).values(), gradients(model, expected.square().sum()).values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def cast_before_use(y: torch.Tensor) -> torch.Tensor:
    """The usual statistics in float32: after ``y.float()``, ``y`` still has its gradient."""
    with torch.no_grad():
        scale = y.float().square().mean(-1, keepdim=True)
    return y * scale


def cast_and_returned(y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        same = y.to(y.dtype)
    return same * 2


def cast_in_regions(y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        same = nn.functional.dropout(y, 0.5, False).type_as(y)
        with torch.autocast("cpu", torch.bfloat16):
            same = same.float()
    return same * y


def cast_again(y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        same, other = y.float().contiguous(), (y * 2).float()
        with torch.no_grad():
            third = same.to(torch.float32).float()
    return same * other * third


@torch.no_grad()
def chosen(y: torch.Tensor) -> torch.Tensor:
    return y.float().contiguous().topk(3).indices


def cast_in_a_decorated_function(y: torch.Tensor) -> torch.Tensor:
    return y + y.gather(-1, chosen(y)).sum(-1, keepdim=True)


def new_tensors(y: torch.Tensor) -> torch.Tensor:
    """Views, copies and other dtypes are tensors of their own, without a gradient."""
    with torch.no_grad():
        parts = (y.view(-1), y.double().float(), y.float() * 1.0, y.to(torch.float32, copy=True), y.reshape(y.shape))
    return y * (parts[0].sum() + parts[1] + parts[2] + parts[3] + parts[4])


def limited(y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        same = y.clamp_(-0.3, 0.3)
    return same * 2


def scaled_in_place(y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y.mul_(0.5).add_(1)
        total = y.sum()
    return y * y + total


def view_written(y: torch.Tensor) -> torch.Tensor:
    part = y[:, 1:4]
    with torch.no_grad():
        part.zero_()
        y[0] = 1.0
    return y * y + part.sum()


def replaced(y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y.copy_(y.clamp(-0.2, 0.2))
        torch.mul(y, 3, out=y)
        other = nn.functional.relu(y, inplace=True)
    return y * other


@pytest.mark.parametrize(
    "function",
    [
        limited,
        scaled_in_place,
        view_written,
        replaced,
        cast_before_use,
        cast_and_returned,
        cast_in_regions,
        cast_again,
        cast_in_a_decorated_function,
        new_tensors,
    ],
)
def test_what_an_operator_returns_as_it_is_or_written_to_keeps_its_gradient(function: Callable[..., Any]) -> None:
    model, x = Then(function), torch.randn(4, 6)
    found, expected = run(model, capture(model, x), "train", x), model(x)
    assert torch.equal(found, expected)
    wanted = gradients(model, expected.square().sum())
    for name, one in gradients(model, found.square().sum()).items():
        torch.testing.assert_close(one, wanted[name], rtol=1e-5, atol=1e-6)
        assert one.abs().sum() > 0
    result = check(model, "neuron", (x,), workers=2)
    assert result.verdict in ("exact", "refused"), result.reason  # nothing to cut is refused


class WithAutocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            exact = self.linear(x.float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = self.linear(x)
        return exact + rough


@pytest.mark.parametrize("ambient", [True, False])
def test_autocast_regions_keep_their_mode(ambient: bool) -> None:
    model, x = WithAutocast(), torch.randn(4, 6)
    captured = capture(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=ambient):
        assert torch.equal(run(model, captured, "train", x), model(x))
    targets = [node.target for node in calls(captured)]
    assert targets.count(enter_autocast) == targets.count(exit_autocast) == 2
    assert autocast_devices(captured.programs["train"].graph) == ("cpu",)


def test_each_device_type_is_named_once() -> None:
    graph = parse("""
        one = torch.amp.autocast_mode._enter_autocast('cpu', torch.bfloat16, True, None)
        two = torch.amp.autocast_mode._enter_autocast('cuda', torch.float16, True, None)
        three = torch.amp.autocast_mode._enter_autocast('cpu', torch.bfloat16, False, None)
        return""")
    assert autocast_devices(graph) == ("cpu", "cuda")


def test_autocast_is_as_before_when_a_region_fails_inside() -> None:
    def fails() -> None:
        with restored_autocast(("cpu",)):
            enter_autocast("cpu", torch.bfloat16, True, False)
            enter_autocast("cpu", torch.float16, True, True)
            raise ZeroDivisionError

    for ambient in (True, False):
        with torch.autocast("cpu", torch.float16, enabled=ambient):
            before = torch.is_autocast_cache_enabled(), torch.get_autocast_dtype("cpu")
            with pytest.raises(ZeroDivisionError):
                fails()
            assert torch.is_autocast_enabled("cpu") is ambient
            assert (torch.is_autocast_cache_enabled(), torch.get_autocast_dtype("cpu")) == before
    assert torch.autocast_increment_nesting() == 1, "no region is left open"
    torch.autocast_decrement_nesting()


def branching(y: torch.Tensor) -> torch.Tensor:
    return torch.cond(y.sum() > 0, torch.sin, torch.cos, (y,))


def test_operators_over_graphs_are_named() -> None:
    with pytest.raises(CaptureError, match=r"uses cond.*self\.function.*ordinary tensor operators"):
        capture(Then(branching), torch.randn(4, 6))


@pytest.mark.parametrize("enabled", [True, False])
def test_gradients_are_not_enabled_again_inside_a_region_without(enabled: bool) -> None:
    """Export does not nest these regions today; if it does, the graph could not tell the two apart."""
    region = fx.GraphModule(nn.Module(), parse("y: f32[4] = placeholder\nz: f32[4] = aten.relu(y)\nreturn z"))
    old = fx.Graph()
    x, body = old.placeholder("x"), old.get_attr("body")
    node = old.call_function(torch.ops.higher_order.wrap_with_set_grad_enabled, (enabled, body, x))
    graph = parse("x: f32[4] = placeholder")
    env: dict[fx.Node, Any] = {x: next(iter(graph.nodes))}
    if enabled:
        with pytest.raises(CaptureError, match=r"enable_grad\(\) inside torch.no_grad\(\)"):
            inline_regions(graph, env, node, {body: region}, grad=False)
        return
    assert inline_regions(graph, env, node, {body: region}, grad=False)
    graph.output(env[node])
    assert text_of(graph) == inspect.cleandoc("""
        x: f32[4] = placeholder
        detach_default: f32[4] = aten.detach(x)
        z: f32[4] = aten.relu(detach_default)
        return z""")
