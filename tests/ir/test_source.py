"""Where in the user's model a node comes from."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import fx, nn

from sdp_compile.capture import capture
from sdp_compile.ir.source import module_path, source_line
from tests.graph_text import parse

IN_TORCH = f'  File "{nn.functional.__file__}", line 9, in relu\n    return torch.relu(x)'
OF_THE_USER = '  File "/home/user/model.py", line 3, in forward\n    return F.relu(x)'
GENERATED = '  File "<eval_with_key>.1", line 2, in forward\n    relu = x'


def node_with(**meta: object) -> fx.Node:
    node = next(iter(parse("x: f32[4] = placeholder\nreturn x").nodes))
    node.meta |= meta
    return node


@pytest.mark.parametrize(
    ("frames", "line"),
    [
        ([OF_THE_USER], "/home/user/model.py:3: return F.relu(x)"),
        ([OF_THE_USER, IN_TORCH], "/home/user/model.py:3: return F.relu(x)"),
        ([OF_THE_USER, GENERATED], "/home/user/model.py:3: return F.relu(x)"),
        ([OF_THE_USER.replace("model", "outer"), OF_THE_USER], "/home/user/model.py:3: return F.relu(x)"),
        ([IN_TORCH], f"{nn.functional.__file__}:9: return torch.relu(x)"),
        ([OF_THE_USER.partition("\n")[0]], "/home/user/model.py:3"),
        ([GENERATED], ""),
        ([], ""),
    ],
)
def test_the_innermost_line_of_the_user(frames: list[str], line: str) -> None:
    assert source_line(node_with(stack_trace="\n".join(frames))) == line


def test_nodes_without_a_trace_have_no_place() -> None:
    assert source_line(None) == source_line(node_with()) == module_path(None) == module_path(node_with()) == ""


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x).tanh()


def test_captured_nodes_know_line_and_module() -> None:
    model = nn.Sequential(nn.ModuleDict({"only": Block()})["only"], nn.ReLU())
    nodes = {node.name: node for node in capture(model, torch.randn(2, 4)).programs["train"].graph.nodes}
    line = inspect.getsourcelines(Block.forward)[1] + 1
    assert source_line(nodes["tanh"]) == f"{__file__}:{line}: return self.up(x).tanh()"
    assert [module_path(nodes[name]) for name in ("linear", "tanh", "relu")] == ["0.up", "0", "1"]
