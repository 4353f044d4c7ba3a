"""Exports the rewritten graph and the axis structure as networkx graphs, as JSON and as DOT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import networkx as nx

from sdp_compile.errors import SDPError
from sdp_compile.inspector.graph import GraphView
from sdp_compile.inspector.modules import Module, TensorInfo
from sdp_compile.inspector.plain import View, plain
from sdp_compile.inspector.rows import Row
from sdp_compile.inspector.structure import StructureView

_COLOURS: Mapping[str, str] = {
    "input": "#c8e6c9",
    "output": "#c8e6c9",
    "state": "#eceff1",
    "mask": "#e1bee7",
    "sync": "#bbdefb",
    "rescale": "#fff9c4",
    "drop": "#ffcdd2",
    "join": "#e1bee7",
    "size": "#b2ebf2",
    "rewritten": "#dcedc8",
    "axis": "#b2ebf2",
    "block": "#fff9c4",
    "parameter": "#eceff1",
    "buffer": "#eceff1",
    "constant": "#eceff1",
}


def graph_export(view: GraphView) -> nx.DiGraph:
    """Returns the rewritten graph: one node per row, with its name and fields. Edges point from inputs to readers."""
    graph = nx.DiGraph(model=view.model, rank=view.rank, workers=view.workers, mode=view.mode, lowering=view.lowering)
    for row in view.rows:
        graph.add_node(row.name, **{key: value for key, value in plain(row).items() if key != "name"})
    graph.add_edges_from((view.rows[source].name, view.rows[target].name) for source, target in view.edges)
    return graph


def structure_export(view: StructureView) -> nx.MultiGraph:
    """Returns the axis structure: families, tensors, and how they meet.

    Node names begin with ``family:`` or ``tensor:``. An edge of kind ``cuts`` joins an axis and a tensor with the
    dimension that it can cut, ``holds`` a block and its parameters, and ``conflict`` two axes of one parameter.
    """
    graph = nx.MultiGraph(model=view.model, workers=view.workers)
    for family in view.families:
        fields = {key: value for key, value in plain(family).items() if key not in ("parameters", "conflicts")}
        graph.add_node(f"family:{family.name}", **fields)
    for tensor in _tensors(view.tree):
        fields = plain(replace(tensor, dims=()))
        graph.add_node(f"tensor:{tensor.name}", **{key: value for key, value in fields.items() if key != "dims"})
        for number, dim in enumerate(tensor.dims):
            for axis in dim.axes:
                graph.add_edge(f"family:{axis}", f"tensor:{tensor.name}", kind="cuts", dim=number, layout=dim.layout)
    for family in view.families:
        if family.kind == "block":
            graph.add_edges_from(
                (f"family:{family.name}", f"tensor:{name}", {"kind": "holds"}) for name in family.parameters
            )
        graph.add_edges_from(
            (f"family:{family.name}", f"family:{other}", {"kind": "conflict"})
            for other in family.conflicts
            if family.name <= other
        )
    return graph


def _tensors(module: Module) -> list[TensorInfo]:
    return [*module.tensors, *(tensor for child in module.children for tensor in _tensors(child))]


def networkx_graph(view: View) -> nx.Graph:
    """Returns the graph of the view ``graph`` or ``structure``.

    Raises:
        SDPError: If the view is another one.
    """
    if isinstance(view, GraphView):
        return graph_export(view)
    if isinstance(view, StructureView):
        return structure_export(view)
    raise _no_graph(view)


def dot(view: View) -> str:
    """Returns `networkx_graph` in DOT, the language of Graphviz, with a colour per kind of node.

    Raises:
        SDPError: If the view is neither ``graph`` nor ``structure``.
    """
    if isinstance(view, GraphView):
        return _graph_dot(view)
    if isinstance(view, StructureView):
        return _structure_dot(view)
    raise _no_graph(view)


def _no_graph(view: View) -> SDPError:
    return SDPError(f"{type(view).__name__} has no graph; export the view graph or structure.")


def to_json(graph: nx.Graph) -> str:
    """Returns networkx's node-link JSON, which `networkx.node_link_graph(data, edges="edges")` reads."""
    return json.dumps(nx.node_link_data(graph, edges="edges"), indent=1, allow_nan=False) + "\n"


def _graph_dot(view: GraphView) -> str:
    graph = graph_export(view)
    return _dot(graph, {row.name: _label(row) for row in view.rows}, {row.name: row.kind for row in view.rows})


def _structure_dot(view: StructureView) -> str:
    graph = structure_export(view)
    labels, kinds = {}, {}
    for node, fields in graph.nodes.items():
        units = f"\n{fields['units']} units" if "units" in fields else f"\n{fields['shape']}"
        labels[node], kinds[node] = node.partition(":")[2] + units, fields["kind"]
    return _dot(graph, labels, kinds)


def _label(row: Row) -> str:
    shape = "" if row.shape is None else f"\n{list(row.shape)}"
    name = row.code if row.kind == "state" else f"{row.name}\n{row.target}"
    return f"{name}{shape}"


def _dot(graph: nx.Graph, labels: Mapping[str, str], kinds: Mapping[str, str]) -> str:
    """DOT with nodes n0, n1, ...: names from the user's model appear in labels only, where any character is allowed."""
    numbers = {node: f"n{number}" for number, node in enumerate(graph)}
    drawn = nx.create_empty_copy(graph, with_data=False)
    drawn = nx.relabel_nodes(drawn, numbers)
    for node, number in numbers.items():
        colour = _COLOURS.get(kinds[node], "#ffffff")
        drawn.nodes[number].update(label=_quoted(labels[node]), style="filled", shape="box", fillcolor=f'"{colour}"')
    for source, target, fields in graph.edges(data=True):
        conflict = {"style": "dashed"} if fields.get("kind") == "conflict" else {}
        drawn.add_edge(numbers[source], numbers[target], **conflict)
    text: str = nx.nx_pydot.to_pydot(drawn).to_string()
    return text


def _quoted(text: str) -> str:
    """A DOT string. pydot leaves backslashes alone and reads text in angle brackets as HTML."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
