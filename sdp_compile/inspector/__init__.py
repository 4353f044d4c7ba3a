"""The inspector: six views of what was captured, planned and rewritten.

Each view is a function from a `Subject` (a capture with its structure and plan) to a frozen dataclass of plain data;
its ``to_dict()`` is what ``--json`` writes. The package ``render`` draws views with rich. `inspect` does both.
"""

from sdp_compile.inspector.cost import CostView, cost_view
from sdp_compile.inspector.diff import DiffView, diff_view
from sdp_compile.inspector.export import dot, graph_export, networkx_graph, structure_export, to_json
from sdp_compile.inspector.graph import GraphView, graph_view
from sdp_compile.inspector.owners import OwnersView, owners_view
from sdp_compile.inspector.phases import PhasesView, phases_view
from sdp_compile.inspector.shown import Shown, inspect, show
from sdp_compile.inspector.structure import StructureView, structure_view
from sdp_compile.inspector.subject import Subject

__all__ = [
    "CostView",
    "DiffView",
    "GraphView",
    "OwnersView",
    "PhasesView",
    "Shown",
    "StructureView",
    "Subject",
    "cost_view",
    "diff_view",
    "dot",
    "graph_export",
    "graph_view",
    "inspect",
    "networkx_graph",
    "owners_view",
    "phases_view",
    "show",
    "structure_export",
    "structure_view",
    "to_json",
]
