"""``sdp-compile inspect``: every view of a user's own model, its files, clean refusals without torch."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import networkx as nx
import pytest
from typer.testing import CliRunner

from sdp_compile.cli.main import app
from tests.cli.test_main import command

pytestmark = pytest.mark.timeout(120)

SOURCE = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 6))

    def forward(self, x):
        return x + self.f(x)

def model():
    return nn.Sequential(nn.Linear(4, 6), *(Block() for _ in range(4))), (torch.randn(4, 4),)
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("user") / "user_blocks.py"
    path.write_text(SOURCE)
    return f"{path}:model"


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["inspect", *arguments], env={"COLUMNS": "80", **environment})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("view", "options", "words"),
    [
        ("structure", [], ["1  Block  x 4, alike", "weight [16*, 6 (1)]", "block'", "4 blocks found"]),
        ("owners", ["--workers", "8"], ["w7", "8 workers", "1.f.0.weight[0]  x 4"]),
        ("graph", ["--mode", "eval"], ["worker 0 of 4 · eval", "return x + self.f(x)", "16→8", "2 to 4: x 3, alike 1"]),
        ("graph", ["--all", "--lowering", "masked"], ["4.f.2  Linear", "self.weight = mask_parameter(self.weight)"]),
        ("diff", ["--rank", "3"], ["slice_parameters", "worker 3 of 4", "~ self.weight", "2 to 4: x 3, alike 1"]),
        ("diff", ["--pass", "sync_gradients", "--side-by-side"], ["before", " │ ", "all_reduce_mean("]),
        ("diff", ["--module", "1.f"], ["1.f.0  Linear"]),
        ("cost", [], ["dense", "each of 4", "all workers", "Sent per worker"]),
    ],
)
def test_each_view(spec: str, view: str, options: list[str], words: list[str]) -> None:
    code, out, error = run(view, spec, "--policy", "neuron", *options)
    assert code == 0, error
    assert all(word in out for word in words), out
    assert "\x1b" not in out and max(map(len, out.splitlines())) <= 80


def test_files_and_json(spec: str, tmp_path: Path) -> None:
    svg, html, dot, graph = (tmp_path / name for name in ("a.svg", "a.html", "a.dot", "a.json"))
    code, out, error = run(
        "graph",
        spec,
        "--json",
        "-",
        "--svg",
        str(svg),
        "--html",
        str(html),
        "--dot",
        str(dot),
        "--graph-json",
        str(graph),
    )
    assert code == 0, error
    data = json.loads(out)
    assert (data["view"], data["version"], data["rank"]) == ("graph", 1, 0)
    assert (data["configuration"]["origin"], data["configuration"]["parameters"]) == ("factory", 886)
    ElementTree.parse(svg)
    assert "Block" in svg.read_text() and html.read_text().startswith("<!DOCTYPE html>")
    assert dot.read_text().startswith("strict digraph")
    assert len(nx.node_link_graph(json.loads(graph.read_text()), edges="edges")) == len(data["rows"])
    assert all(f"{path}: written" in error.replace("\n", "") for path in (svg, html, dot, graph))


def test_the_phases_of_a_schedule(spec: str) -> None:
    code, out, error = run("phases", spec, "--schedule", "growing", "--workers", "8", "--node-size", "4", "--json", "-")
    assert code == 0, error
    parts = json.loads(out)["parts"]
    assert [part["policy"]["coverage"] for part in parts] == [0.5, 0.75, 1.0]
    assert {part["policy"]["node_size"] for part in parts} == {4}
    code, out, error = run("phases", spec, "--schedule", "growing")
    assert code == 0 and "coverage 0.75" in out, error
    assert max(map(len, out.splitlines())) <= 80


def test_the_structure_as_a_graph(spec: str, tmp_path: Path) -> None:
    graph, found = tmp_path / "axes.json", tmp_path / "found.json"
    code, _, error = run("structure", spec, "--graph-json", str(graph), "--json", str(found))
    assert code == 0, error
    axes = nx.node_link_graph(json.loads(graph.read_text()), edges="edges")
    cuts = {(a, b) for a, b, kind in axes.edges(data="kind") if kind == "cuts"}
    assert {
        ("family:1.f.0.weight[0]", "tensor:1.f.0.weight"),
        ("family:1.f.0.weight[0]", "tensor:1.f.2.weight"),
    } <= cuts
    assert json.loads(found.read_text())["view"] == "structure"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Missing argument"]),
        (["grpah", "a:b"], ["grpah", "graph"]),
        (["graph", "resnet18"], ["resnet18", "torchvision:NAME"]),
        (["graph", "a:b", "--rank", "4"], ["--rank 4", "0 to 3"]),
        (["cost", "a:b", "--rank", "1"], ["--rank", "graph and diff"]),
        (["owners", "a:b", "--dot", "x.dot"], ["--dot", "graph and structure"]),
        (["phases", "a:b"], ["--schedule NAME"]),
        (["cost", "a:b", "--schedule", "growing"], ["--schedule", "phases"]),
        (["phases", "a:b", "--schedule", "growin"], ["Did you mean 'growing'"]),
        (["phases", "a:b", "--schedule", "growing", "--masking", "forward"], ["Leave out --policy"]),
        (["graph", "a:b", "--pass", "slice"], ["--pass", "diff"]),
        (["graph", "a:b", "--mode", "test"], ["--mode", "train", "eval"]),
        (["graph", "a:b", "--policy", "newron"], ["newron", "neuron"]),
        (["graph", "a:b", "--svg", "/no/such/folder/x.svg"], ["--svg", "folder"]),
    ],
)
def test_bad_words_are_refused_without_torch(arguments: list[str], words: list[str]) -> None:
    result = command("inspect", *arguments)
    assert result.returncode == 2, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert "torch was imported" not in result.stderr and "Traceback" not in result.stderr


def test_what_the_graph_does_not_have_is_named(spec: str) -> None:
    for options, words in ((["--module", "9*"], "1.f.0"), (["--pass", "slice_parameter"], "slice_parameters")):
        code, _, error = run("diff", spec, *options)
        assert code == 2 and words in error and "Traceback" not in error


def test_help_shows_examples_without_torch() -> None:
    result = command("inspect", "--help")
    assert result.returncode == 0 and "torch was imported" not in result.stderr
    assert "Examples" in result.stdout and "Exit codes" in result.stdout
