"""Device constants of a graph follow the module to another device."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import fx, nn

from sdp_compile.capture import capture, retarget_devices
from tests.graph_text import parse, text_of


def test_devices_follow() -> None:
    class Positions(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.arange(x.shape[1], device=x.device)

    graph = capture(Positions(), torch.randn(4, 6)).programs["train"].graph
    retarget_devices(graph, torch.device("cpu"), torch.device("meta"))
    result = fx.Interpreter(nn.Module(), graph=graph).run(torch.randn(4, 6, device="meta"))
    assert result[0].is_meta


BEFORE = """
    a = aten.zeros([2], device=device('cpu'), pin_memory=False)
    b = aten.zeros([2], device=device('cpu', 0))
    c = aten.zeros([2], device=device('meta'))
    d = aten.to.dtype_layout(a, dtype=torch.float16, device=device('cpu'))
    e = aten.zeros([2], device=None)
    mode = torch.amp.autocast_mode._enter_autocast('cpu', torch.bfloat16, True, None)
    other = torch.amp.autocast_mode._enter_autocast('xpu', torch.bfloat16, True, None)
    return a, e"""


@pytest.mark.parametrize("source", ["cpu", "cpu:0"])
def test_only_the_devices_of_the_source_are_replaced(source: str) -> None:
    graph = parse(BEFORE)
    retarget_devices(graph, torch.device(source), torch.device("cuda:1"))
    expected = inspect.cleandoc(BEFORE).replace("device('cpu', 0)", "device('cuda:1')")
    expected = expected.replace("device('cpu')", "device('cuda:1')").replace("_autocast('cpu'", "_autocast('cuda'")
    assert text_of(graph) == expected


def test_moving_to_the_same_device_changes_nothing() -> None:
    graph = parse(BEFORE)
    before = text_of(graph)
    retarget_devices(graph, torch.device("cpu"), torch.device("cpu"))
    retarget_devices(graph, torch.device("cuda"), torch.device("meta"))
    assert text_of(graph) == before
