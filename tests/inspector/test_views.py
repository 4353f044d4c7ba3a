"""The other views, compared with compiled modules, and renderings with hostile names and narrow terminals."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pydot
import pytest
import torch
from rich.cells import cell_len
from rich.console import Console
from torch import nn

from sdp_compile.compiler import assemble
from sdp_compile.errors import SDPError
from sdp_compile.inspector import (
    Shown,
    Subject,
    cost_view,
    dot,
    graph_view,
    inspect,
    networkx_graph,
    owners_view,
    show,
    structure_view,
    to_json,
)
from sdp_compile.inspector.modules import Module
from sdp_compile.inspector.shown import VIEWS
from sdp_compile.inspector.terminal import text
from sdp_compile.lowering import lower
from sdp_compile.passes import pipeline
from sdp_compile.planning.holdings import LoweringKind
from sdp_compile.runtime.module.sdp_module import SDPModule
from tests.inspector.models import HOSTILE, Tiny
from tests.inspector.subjects import analysed, hostile, library, planned, tiny

pytestmark = pytest.mark.timeout(120)

TOKENS = torch.zeros(2, 5, dtype=torch.long)


@pytest.fixture(scope="module")
def compiled() -> Any:
    return module_of(tiny(), 1)


def module_of(subject: Subject, rank: int, lowering: LoweringKind = "sliced") -> SDPModule:
    passes = pipeline(lowering, subject.plan.masking)
    return assemble(lower(subject.analysis, subject.plan, rank, passes), Tiny())


def test_graph_shows_the_shapes_of_the_module(compiled: Any) -> None:
    rows = inspect(compiled, "graph").view.rows
    shapes = {row.code.removeprefix("self."): row.shape for row in rows if row.kind == "state"}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in compiled.named_parameters()}
    full = {row.code.removeprefix("self."): row.full_shape for row in rows if row.kind == "state"}
    assert full == {name: tuple(parameter.shape) for name, parameter in Tiny().named_parameters()}
    result = next(row for row in rows if row.name == rows[-1].inputs[0])
    assert result.shape == tuple(compiled(TOKENS).shape)


@pytest.mark.parametrize("lowering", ["sliced", "masked"])
def test_a_compiled_module_shows_the_same_as_the_pipeline(lowering: Any) -> None:
    """The capture of a masked module contains its masks, and its last pass is not run again."""
    module = module_of(tiny(), 1, lowering)
    for view, options in (("structure", {}), ("graph", {"rank": 1, "lowering": lowering})):
        assert inspect(module, view).to_dict() == show(tiny(), view, **options).to_dict()


def test_structure_adds_up() -> None:
    subject = library("resnet18", "block")
    view = structure_view(subject)
    state = subject.capture.state.values()
    assert view.nbytes == sum(tensor.nbytes for tensor in state if tensor.kind == "parameter")

    def check(module: Module) -> list[str]:
        own = sum(tensor.nbytes for tensor in module.tensors if tensor.kind == "parameter")
        assert module.nbytes == own + sum(child.nbytes for child in module.children)
        return [tensor.name for tensor in module.tensors] + [name for child in module.children for name in check(child)]

    assert sorted(check(view.tree)) == sorted(subject.capture.state)
    stages = {child.path: child for child in view.tree.children}
    assert [child.like for child in stages["layer1"].children] == [None, "layer1.0"]
    assert [child.like for child in stages["layer2"].children] == [None, None]


def test_owners_and_costs_are_those_of_the_modules() -> None:
    subject = tiny("block")
    owners, cost = owners_view(subject), cost_view(subject)
    for one, paid in zip(owners.classes, cost.classes, strict=True):
        assert one.workers == paid.workers
        for rank in one.workers:
            held = sum(parameter.nbytes for parameter in module_of(subject, rank).parameters())
            assert held == one.parameters == paid.cost.parameters
    family = owners.families[0]
    runs = [(run.first + unit, owners.sets[run.owners]) for run in family.runs for unit in range(run.units)]
    assert runs == list(enumerate(subject.plan.owners(family.name)))
    assert sum(run.nbytes for run in family.runs) == family.nbytes
    assert sum(group.sent for group in cost.groups if 0 in group.owners) == pytest.approx(cost.classes[0].cost.sent)


def test_a_thousand_workers_fit_a_page() -> None:
    for view in ("owners", "cost"):
        lines = text(show(tiny(workers=1000), view), width=80).splitlines()
        assert len(lines) < 60 and max(map(len, lines)) <= 80


def test_a_thousand_kinds_of_worker_fit_a_page() -> None:
    wide = nn.Sequential(nn.Linear(4, 512), nn.ReLU(), nn.Linear(512, 4))
    subject = planned(analysed(wide, (torch.randn(2, 4),)), "neuron", 128, slots=128)
    assert len(owners_view(subject).classes) == 128
    for view in ("owners", "cost"):
        lines = text(show(subject, view), width=80).splitlines()
        assert len(lines) < 130 and max(map(len, lines)) <= 80


def test_many_buckets_are_gathered_by_their_owners() -> None:
    subject, passes = tiny(layers=5), pipeline(bucket_bytes=2048)
    for view in ("graph", "diff"):
        shown = show(subject, view, passes=passes)
        marks = [row for row in graph_view(subject, passes=passes).rows if row.kind == "sync"]
        owners = {row.code.rpartition("owners=")[2] for row in marks}
        assert len(marks) > 2 * len(owners)
        assert str(shown).count("all_reduce_mean(") == len(owners) == str(shown).count(" more for owners=")
        assert str(show(subject, view, passes=passes, unfold=True)).count("all_reduce_mean(") == len(marks)


def test_module_narrows_by_glob() -> None:
    view = graph_view(tiny(), module="layers.*.mlp")
    assert {row.module.split(".")[2] for row in view.rows} == {"mlp"}
    assert {row.module.split(".")[1] for row in view.rows} == {"0", "1", "2"}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("width", [20, 80])
def test_hostile_names_are_shown_literally(view: str, width: int) -> None:
    shown = show(hostile(), view, **({"schedule": "growing"} if view == "phases" else {}))
    shown_text = text(shown, width)
    assert "\x1b" not in shown_text
    assert max(map(cell_len, shown_text.splitlines())) <= width
    if view in ("structure", "graph", "diff") and width == 80:
        for name in (*HOSTILE[:4], "line\N{SYMBOL FOR LINE FEED}break", "\N{SYMBOL FOR ESCAPE}[2J"):
            assert name in shown_text, name
    page = shown._repr_html_()
    assert "<script>" not in page and "\x1b" not in page
    ElementTree.fromstring(shown.svg("[red]<b>&"))
    if view not in ("cost", "phases"):  # numbers alone
        assert json.dumps(HOSTILE[0])[1:-1] in shown.to_json()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pydot")
@pytest.mark.parametrize("view", ["graph", "structure"])
def test_exports_hold_the_same_graph(view: str) -> None:
    data = show(hostile(), view).view
    graph = networkx_graph(data)
    again = nx.node_link_graph(json.loads(to_json(graph)), edges="edges")
    assert nx.utils.graphs_equal(again, graph)
    (parsed,) = pydot.graph_from_dot_data(dot(data))
    assert len(parsed.get_nodes()) == len(graph) and len(parsed.get_edges()) == graph.number_of_edges()
    assert 'quoted\\" \\\\n back' in dot(data)
    if view == "graph":
        assert nx.is_directed_acyclic_graph(graph)
        assert {node: fields["kind"] for node, fields in graph.nodes.items()} == {r.name: r.kind for r in data.rows}


def test_shown_prints_everywhere(compiled: Any) -> None:
    shown = inspect(compiled, "cost")
    assert isinstance(shown, Shown)
    assert str(shown) == repr(shown) == text(shown)
    assert "<pre" in shown._repr_html_() and "parameters" in shown._repr_html_()
    assert "\x1b[" in printed(shown, force_terminal=True, color_system="truecolor")
    assert "\x1b[" not in printed(shown)


def printed(shown: Shown, **options: Any) -> str:
    buffer = StringIO()
    Console(file=buffer, width=80, _environ={}, **options).print(shown)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("view", "options", "words"),
    [("grpah", {}, "graph"), ("owners", {"rank": 1}, "takes no options"), ("graph", {"modul": "x"}, "module")],
)
def test_unknown_views_and_options_are_refused(compiled: Any, view: str, options: Any, words: str) -> None:
    with pytest.raises(SDPError, match=words):
        inspect(compiled, view, **options)
