"""Graphs survive pickling: names, operators, arguments and metadata."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import fx, nn

from sdp_compile.capture import capture
from sdp_compile.ir.record import graph_from_record, graph_record
from tests.graph_text import parse, text_of


def pickled(graph: fx.Graph) -> fx.Graph:
    return graph_from_record(pickle.loads(pickle.dumps(graph_record(graph))))


PROGRAMS = {
    "operators, functions and nested arguments": """
        x: f32[4, 6] = placeholder
        w: f32[6, 6] = get_attr[layers.0.weight]
        parts: [f32[4, 2], f32[4, 4]] = aten.split_with_sizes(x, [2, 4], dim=1)
        first: f32[4, 2] = getitem(parts, 0)
        joined: f32[4, 6] = aten.cat([first, first, first], 1)
        zeros: f32[3] = aten.zeros([3], dtype=torch.float32, device=device('cpu'))
        same: (f32[6, 6],) = marks.all_reduce_mean(w, bucket=0, owners=(0, 1))
        return joined, None""",
    "names with numbers": """
        add_7: f32[4] = placeholder
        add: f32[4] = aten.add.Tensor(add_7, 1)
        add_1: f32[4] = aten.add.Tensor(add, 1)
        return add_1""",
    "slices": """
        x = placeholder
        n = aten.sym_size.int(x, 0)
        y = getitem(x, slice(0, n, 2))
        return y""",
    "modes": """
        mode = torch.amp.autocast_mode._enter_autocast('cpu', torch.bfloat16, True, None)
        left = torch.amp.autocast_mode._exit_autocast(mode)
        return""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_graph_is_the_same_after_pickling(name: str) -> None:
    graph = parse(PROGRAMS[name])
    restored = pickled(graph)
    restored.lint()
    assert text_of(restored) == text_of(graph)
    assert [node.target for node in restored.nodes] == [node.target for node in graph.nodes]


def test_free_sizes_become_those_of_the_example() -> None:
    graph = parse("""
        x: f32[n, 4] = placeholder
        rows: n = aten.sym_size.int(x, 0)
        return rows""")
    x, rows, _ = graph.nodes
    example = x.meta["val"].shape[0].node.hint
    restored, size, _ = pickled(graph).nodes
    assert restored.meta["val"].shape == (example, 4) and type(restored.meta["val"].shape[0]) is int
    assert rows.meta["val"] is not None and size.meta["val"] is None


def test_tensors_of_metadata_are_fake_and_keep_dtype_and_device() -> None:
    graph = parse("x: bf16[2, 3] = placeholder\nreturn x")
    value = next(iter(pickled(graph).nodes)).meta["val"]
    assert isinstance(value, torch._subclasses.FakeTensor)
    assert (value.shape, value.dtype, value.device) == ((2, 3), torch.bfloat16, torch.device("cpu"))


def test_where_a_node_comes_from_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    graph = capture(model, torch.randn(2, 4)).programs["train"].graph
    graph_nodes = list(graph.nodes)
    graph_nodes[-2].meta["checkpoint"] = 3
    graph_nodes[-2].meta["unknown"] = object()  # of another tool; it need not even be picklable
    for node, restored in zip(graph_nodes, pickled(graph).nodes, strict=True):
        assert restored.name == node.name
        assert restored.meta.get("stack_trace") == node.meta.get("stack_trace")
        assert restored.meta.get("checkpoint") == node.meta.get("checkpoint")
        stacks = [stack and [path for path, _ in stack.values()] for stack in map(module_stack, (node, restored))]
        assert stacks[0] == stacks[1]
        assert "unknown" not in restored.meta


def module_stack(node: fx.Node) -> dict[str, tuple[str, object]] | None:
    return node.meta.get("nn_module_stack")


def test_a_restored_graph_runs() -> None:
    graph = pickled(
        parse("""
        x: f32[4] = placeholder
        y: f32[4] = aten.add.Tensor(x, 1, alpha=2)
        return y""")
    )
    (found,) = fx.Interpreter(nn.Module(), graph=graph).run(torch.ones(4))
    assert torch.equal(found, torch.full((4,), 3.0))
