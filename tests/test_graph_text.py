"""The text of a graph reads back as the same graph."""

from __future__ import annotations

import operator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sdp_compile.capture import capture
from sdp_compile.ops import narrow
from tests.graph_text import parse, text_of

aten = torch.ops.aten

PROGRAMS = {
    "a linear layer": """
        x: f32[2, 8] = placeholder
        w: f32[4, 8] = get_attr[fc.weight]
        y: f32[2, 4] = aten.linear(x, w)
        return y""",
    "names of state that are not Python": """
        w: f32[4] = get_attr[layers.0.weight]
        c: i64[] = get_attr[_constant_0]
        return w, c""",
    "an input called otherwise": """
        x: bf16[3] = placeholder[input-1]
        return x""",
    "overloads, keywords and constants": """
        x: f64[3] = placeholder
        a: f64[3] = aten.add.Tensor(x, -1.5, alpha=2)
        b: b8[3] = aten.zeros([3], dtype=torch.bool, device=device('cpu'), pin_memory=None)
        c: f64[3] = aten.where.ScalarOther(b, a, inf)
        d: f64[3] = aten.clone(c, memory_format=torch.contiguous_format)
        return d""",
    "several results": """
        x: f32[4, 6] = placeholder
        parts: [f32[4, 2], f32[4, 4]] = aten.split_with_sizes(x, [2, 4], 1)
        first: f32[4, 2] = getitem(parts, 0)
        norm: (f32[4, 6], f32[4, 1], None) = aten.native_layer_norm(x, [6], None, None, 1e-05)
        whole: f32[4, 6] = getitem(norm, 0)
        return first, whole, None""",
    "free sizes": """
        x: f32[n0, 3, n1] = placeholder
        rows: n0 = aten.sym_size.int(x, 0)
        twice: 2*n0 = mul(rows, 2)
        y: f32[2*n0, 3*n1] = aten.zeros([twice, 6])
        return y""",
    "functions of this project": """
        a: f32[2] = get_attr[w]
        b: f32[2] = get_attr[w_rest]
        w: f32[4] = narrow.join(a, b, 0, (0, 2, 2))
        one: (f32[2],) = marks.all_reduce_mean(a, bucket=0, owners=(0, 1))
        return w""",
    "functions of others": """
        mode = torch.amp.autocast_mode._enter_autocast('cpu', torch.bfloat16, True, None)
        left = torch.amp.autocast_mode._exit_autocast(mode)
        return""",
    "writes in place, without values": """
        x = placeholder
        z = aten.zero_(x)
        s = getitem(x, slice(0, None, 2))
        return z""",
}


def normalised(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_text_of_a_parsed_text_is_that_text(name: str) -> None:
    assert text_of(parse(PROGRAMS[name])) == normalised(PROGRAMS[name])


def test_a_parsed_graph_is_the_one_that_fx_would_build() -> None:
    graph = parse("""
        x: f32[2, 8] = placeholder
        w: f32[4, 8] = get_attr[fc.weight]
        parts: (f32[2, 2], f32[2, 2]) = aten.split.Tensor(w, 2, dim=1)
        part: f32[2, 2] = getitem(parts, 1)
        return part, x""")
    x, w, parts, part, output = graph.nodes
    assert (x.op, x.target, w.op, w.target) == ("placeholder", "x", "get_attr", "fc.weight")
    assert (parts.target, parts.args, parts.kwargs) == (aten.split.Tensor, (w, 2), {"dim": 1})
    assert (part.target, part.args) == (operator.getitem, (parts, 1)) and part.meta["val"].shape == (2, 2)
    assert output.args == ([part, x],)
    assert x.meta["val"].shape == (2, 8) and x.meta["val"].dtype == torch.float32
    (join,) = [n for n in parse(PROGRAMS["functions of this project"]).nodes if n.name == "w"]
    assert join.target is narrow.join and join.args[3] == (0, 2, 2)


def test_free_sizes_are_symbols() -> None:
    graph = parse("x: f32[batch, 2 * batch, other] = placeholder\nreturn x")
    batch, double, other = next(iter(graph.nodes)).meta["val"].shape
    assert all(isinstance(size, torch.SymInt) for size in (batch, double, other))
    assert batch.node.expr * 2 == double.node.expr and batch.node.expr != other.node.expr


SIZES = st.lists(st.sampled_from(["1", "4", "n0", "2*n0", "n0 + 3"]), max_size=3).map(", ".join)
VALUES = st.recursive(
    st.builds("{}[{}]".format, st.sampled_from(["f32", "bf16", "i64", "b8"]), SIZES),
    lambda inner: st.lists(inner, min_size=2, max_size=3).map(", ".join).map("({})".format),
    max_leaves=4,
)
CONSTANTS = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=5), st.lists(st.integers(), max_size=3)
).map(repr)


@settings(deadline=None, max_examples=60)
@given(VALUES, st.lists(CONSTANTS, max_size=3), st.lists(CONSTANTS, max_size=2))
def test_any_values_and_constants_survive(value: str, constants: list[str], keywords: list[str]) -> None:
    named = [f"key_{number}={constant}" for number, constant in enumerate(keywords)]
    text = f"x: {value} = placeholder\ny = aten.relu({', '.join(['x', *constants, *named])})\nreturn y"
    assert text_of(parse(text)) == text


def test_captured_graphs_survive() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    model(torch.randn(2, 3, 8, 8))
    for program in capture(model, torch.randn(2, 3, 8, 8)).programs.values():
        text = text_of(program.graph)
        assert "conv2d: f32[n0, 4," in text and text_of(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y = aten.relu(x)", "no node 'x'"),
        ("y = aten.no_such_operator(1)", "no_such_operator"),
        ("y = aten.add.NoOverload(1)", "NoOverload"),
        ("x: f32[2 = placeholder", "never closed"),
        ("x: f32[2] = buffer[a]", "not placeholder"),
        ("sum = placeholder", "choose another"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse(text)
    assert text in str(caught.value)
