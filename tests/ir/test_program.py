"""Descriptions of captured models: sizes in bytes, casts, pickling."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sdp_compile.capture import capture
from sdp_compile.ir.program import Capture, Precision, Program, StateTensor, copy_program
from tests.graph_text import text_of


@pytest.mark.parametrize("shape", [(), (0,), (3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_sizes_are_those_of_the_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    tensor, described = torch.zeros(shape, dtype=dtype), StateTensor(shape, dtype, "parameter")
    assert (described.numel, described.nbytes) == (tensor.numel(), tensor.nbytes)


def test_casts_by_name_win_over_those_by_dtype() -> None:
    precision = Precision(casts=((torch.float32, torch.bfloat16), ("norm.weight", torch.float32)))
    assert precision.cast("up.weight", torch.float32) == torch.bfloat16
    assert precision.cast("norm.weight", torch.float32) == torch.float32
    assert precision.cast("count", torch.int64) == torch.int64


def captured() -> tuple[nn.Module, Capture]:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    return model, capture(model, {"input": torch.randn(3, 4)})


def test_a_capture_survives_pickling() -> None:
    model, before = captured()
    after: Capture = pickle.loads(pickle.dumps(before))
    assert (after.state, after.aliases, after.training, after.notes, after.device) == (
        before.state,
        before.aliases,
        before.training,
        before.notes,
        before.device,
    )
    for mode, program in before.programs.items():
        restored = after.programs[mode]
        assert (restored.mode, restored.inputs, restored.precision) == (mode, program.inputs, program.precision)
        assert (restored.in_spec, restored.out_spec) == (program.in_spec, program.out_spec)
        assert [node.name for node in restored.graph.nodes] == [node.name for node in program.graph.nodes]
    model.eval()
    x = torch.randn(5, 4)
    tensors = dict(model.state_dict())

    class Run(fx.Interpreter):
        def fetch_attr(self, target: str) -> torch.Tensor:
            return tensors[target]

    program = after.programs["eval"]
    found = Run(nn.Module(), graph=program.graph).run(*pytree.tree_leaves(((), {"input": x})))
    assert torch.equal(pytree.tree_unflatten(found, program.out_spec), model(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, copy_program])
def test_a_copy_has_a_graph_of_its_own(copied: Callable[[Program], Program]) -> None:
    program = captured()[1].programs["train"]
    before = text_of(program.graph)
    twin = copied(program)
    assert [node.name for node in twin.graph.nodes] == [node.name for node in program.graph.nodes]
    next(iter(twin.graph.nodes)).meta["val"] = None
    for node in reversed(twin.graph.nodes):
        twin.graph.erase_node(node)
    assert text_of(program.graph) == before


def test_a_copied_program_keeps_the_metadata_in_dictionaries_of_its_own() -> None:
    program = captured()[1].programs["train"]
    twin = copy_program(program)
    assert [node.meta for node in twin.graph.nodes] == [node.meta for node in program.graph.nodes]
    next(iter(twin.graph.nodes)).meta["mark"] = True
    assert not any("mark" in node.meta for node in program.graph.nodes)
