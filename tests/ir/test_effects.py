"""What the nodes of a graph read, write and alias, on small programs; for aliases torch itself is the oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from sdp_compile.ir.effects import Effects, aliased_inputs, live_nodes, written_inputs
from tests.graph_text import parse


def effects_of(text: str) -> tuple[Effects, dict[str, fx.Node]]:
    graph = parse(text)
    return Effects(graph), {node.name: node for node in graph.nodes}


def names(nodes: object) -> list[str]:
    return [node.name for node in nodes]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("call", "written"),
    [
        ("aten.relu(x)", []),
        ("aten.relu_(x)", ["x"]),
        ("aten.add_.Tensor(x, y)", ["x"]),
        ("aten.add.out(x, y, out=z)", ["z"]),
        ("aten.copy_(y, x)", ["y"]),
        ("aten._foreach_add_.Scalar([x, y], 1)", ["x", "y"]),
        ("aten.batch_norm(x, None, None, y, z, True, 0.1, 1e-05, False)", ["y", "z"]),
        ("aten.batch_norm(x, None, None, y, z, False, 0.1, 1e-05, False)", []),
        ("aten.batch_norm(x, None, None, None, None, True, 0.1, 1e-05, False)", []),
        ("aten.instance_norm(x, None, None, y, z, True, 0.1, 1e-05, False)", ["y", "z"]),
        ("iadd(x, y)", ["x"]),
        ("add(x, y)", []),
        ("getitem(x, 0)", []),
    ],
)
def test_what_a_node_writes(call: str, written: list[str]) -> None:
    _, nodes = effects_of(
        f"x: f32[4] = placeholder\ny: f32[4] = placeholder\nz: f32[4] = placeholder\nr = {call}\nreturn"
    )
    assert names(written_inputs(nodes["r"])) == written
    assert not written_inputs(nodes["x"])


SHARING: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "aten.relu(x)": torch.relu,
    "aten.relu_(x)": torch.relu_,
    "aten.view(x, [-1])": lambda x: x.view(-1),
    "aten.reshape(x, [-1])": lambda x: x.reshape(-1),
    "aten.select.int(x, 0, 0)": lambda x: x.select(0, 0),
    "aten.t(x)": torch.t,
    "aten.clone(x)": torch.clone,
    "aten.contiguous(x)": lambda x: x.contiguous(),
    "aten.to.dtype(x, torch.float32)": lambda x: x.to(torch.float32),
    "aten.dropout(x, 0.5, False)": lambda x: torch.dropout(x, 0.5, False),
    "aten.feature_dropout(x, 0.5, False)": lambda x: torch.feature_dropout(x, 0.5, False),
    "aten.alpha_dropout(x, 0.5, False)": lambda x: torch.alpha_dropout(x, 0.5, False),
    "aten.type_as(x, x)": lambda x: x.type_as(x),
    "aten.atleast_2d(x)": torch.atleast_2d,
    "aten.detach(x)": torch.detach,
    "aten.expand(x, [4, 4])": lambda x: x.expand(4, 4),
    "aten.chunk(x, 2)": lambda x: x.chunk(2)[0],
    "aten.mul.Tensor(x, x)": lambda x: x * x,
}


@pytest.mark.parametrize("call", SHARING)
def test_a_result_that_shares_storage_is_an_alias(call: str) -> None:
    """Torch's own result tells; a node may be taken for an alias that is none, never the other way round."""
    x = torch.randn(4, 4)
    shares = SHARING[call](x).untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    _, nodes = effects_of(f"x: f32[4, 4] = placeholder\nr = {call}\nreturn r")
    assert ("x" in names(aliased_inputs(nodes["r"]))) is shares


def test_storages_are_joined_through_views_and_results() -> None:
    effects, nodes = effects_of("""
        x: f32[4, 4] = placeholder
        w: f32[4, 4] = get_attr
        parts: [f32[2, 4], f32[2, 4]] = aten.split.Tensor(x, 2)
        part: f32[2, 4] = getitem(parts, 1)
        row: f32[4] = aten.select.int(part, 0, 0)
        y: f32[4, 4] = aten.relu(x)
        z: f32[4, 4] = aten.add_.Tensor(y, w)
        return row, z""")
    storage = {name: effects.storage[node].name for name, node in nodes.items() if name != "output"}
    assert storage == {"x": "x", "w": "w", "parts": "x", "part": "x", "row": "x", "y": "y", "z": "y"}
    assert names(effects.external) == ["x"] and names(effects.state) == ["w"]


def test_a_read_after_a_write_depends_on_the_last_writer() -> None:
    effects, nodes = effects_of("""
        x: f32[4] = placeholder
        y: f32[4] = aten.neg(x)
        before: f32[4] = aten.exp(y)
        view: f32[] = aten.select.int(y, 0, 0)
        first: f32[] = aten.zero_(view)
        second: f32[4] = aten.relu_(y)
        stale: f32[4] = aten.exp(y)
        fresh: f32[4] = aten.exp(second)
        return before, stale, fresh""")
    assert nodes["before"] not in effects.stale and nodes["fresh"] not in effects.stale
    assert effects.stale[nodes["stale"]] == {nodes["y"]: nodes["second"]}
    assert names(effects.sources(nodes["stale"])) == ["y", "second"]
    assert nodes["stale"] in effects.readers[nodes["second"]]
    assert names(effects.written_after(nodes["y"])) == ["first", "second"]
    assert names(effects.written_after(nodes["first"])) == ["second"]


def test_shared_statistics_order_nothing() -> None:
    effects, nodes = effects_of("""
        x: f32[2, 4] = placeholder
        mean: f32[4] = get_attr
        one: f32[2, 4] = aten.batch_norm(x, None, None, mean, mean, True, 0.1, 1e-05, False)
        two: f32[2, 4] = aten.batch_norm(one, None, None, mean, mean, True, 0.1, 1e-05, False)
        return two""")
    assert nodes["two"] not in effects.stale


def test_the_caller_reads_what_was_written_to_its_tensor() -> None:
    effects, nodes = effects_of("""
        x: f32[4] = placeholder
        y: f32[4] = aten.relu_(x)
        return""")
    assert nodes["output"] in effects.readers[nodes["y"]]


PROGRAM = """
    x: f32[4] = placeholder
    unused: f32[4] = placeholder
    count: f32[] = get_attr
    counted: f32[] = aten.add_.Tensor(count, 1)
    noise: f32[4] = aten.rand([4])
    scaled: f32[4] = aten.mul.Tensor(noise, 2)
    y: f32[4] = aten.neg(x)
    flat: f32[4] = aten.view(y, [-1])
    zeroed: f32[4] = aten.zero_(flat)
    z: f32[4] = aten.exp(y)
    late: f32[4] = aten.relu_(y)
    checked = aten._assert_tensor_metadata(x, None, None, torch.float32)
    return z"""


def test_live_nodes_are_those_that_something_outside_depends_on() -> None:
    effects, _ = effects_of(PROGRAM)
    live = live_nodes(effects, lambda name: False)
    dead = {"count", "counted", "noise", "scaled", "late"}
    assert {node.name for node in effects.nodes} - {node.name for node in live} == dead


def test_writes_to_state_live_where_the_state_is_kept() -> None:
    effects, nodes = effects_of(PROGRAM)
    asked: list[str] = []
    live = live_nodes(effects, lambda name: asked.append(name) or True)
    assert asked == ["count"] and {nodes["count"], nodes["counted"]} <= live
    assert effects.live == live and nodes["noise"] not in live


def test_readers_leave_out_dead_nodes() -> None:
    effects, nodes = effects_of(PROGRAM)
    assert effects.readers[nodes["noise"]] == set()
    assert effects.readers[nodes["y"]] == {nodes["flat"], nodes["z"]}
    assert effects.readers[nodes["zeroed"]] == {nodes["z"]}
