"""A view with its rendering, for print, rich, notebooks and files."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rich.console import RenderableType

from sdp_compile.errors import SDPError, did_you_mean
from sdp_compile.inspector.cost import CostView, cost_view
from sdp_compile.inspector.diff import DiffView, diff_view
from sdp_compile.inspector.graph import GraphView, graph_view
from sdp_compile.inspector.owners import OwnersView, owners_view
from sdp_compile.inspector.phases import PhasesView, phases_view
from sdp_compile.inspector.plain import View
from sdp_compile.inspector.render.cost import render_cost
from sdp_compile.inspector.render.diff import render_diff
from sdp_compile.inspector.render.graph import render_graph
from sdp_compile.inspector.render.owners import render_owners
from sdp_compile.inspector.render.phases import render_phases
from sdp_compile.inspector.render.structure import render_structure
from sdp_compile.inspector.structure import StructureView, structure_view
from sdp_compile.inspector.subject import Subject
from sdp_compile.inspector.terminal import PLAIN_WIDTH, html, recorded, text
from sdp_compile.runtime.module.sdp_module import SDPModule

VIEWS: dict[str, Callable[..., View]] = {
    "structure": structure_view,
    "owners": owners_view,
    "graph": graph_view,
    "diff": diff_view,
    "cost": cost_view,
    "phases": phases_view,
}

OF_A_RANK = ("graph", "diff")
"""The views of a single worker's program. They take ``rank``, ``mode``, ``lowering`` and ``module``."""


class Shown:
    """What `SDPModule.inspect` returns. Rich prints it in colour, ``print`` as text; a notebook shows it as HTML.

    Attributes:
        view: The plain data.
    """

    def __init__(self, view: View, renderable: RenderableType) -> None:
        self.view = view
        self._renderable = renderable

    def __rich__(self) -> RenderableType:
        return self._renderable

    def __str__(self) -> str:
        return text(self._renderable)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return html(self._renderable)

    def to_dict(self) -> dict[str, Any]:
        """Returns the plain data; see `View.to_dict`."""
        return self.view.to_dict()

    def to_json(self) -> str:
        """Returns the plain data as JSON."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def svg(self, title: str, width: int = PLAIN_WIDTH) -> str:
        """Returns an SVG picture of a terminal that shows the view, ``width`` columns wide."""
        return recorded(self._renderable, width).export_svg(title=title)

    def page(self, width: int = PLAIN_WIDTH) -> str:
        """Returns a complete HTML page, ``width`` columns wide."""
        return recorded(self._renderable, width).export_html(inline_styles=True)


def inspect(module: SDPModule, view: str = "structure", **options: Any) -> Shown:
    """Shows one view of a compiled module.

    Args:
        module: The compiled module.
        view: ``"structure"``, ``"owners"``, ``"graph"``, ``"diff"``, ``"cost"`` or ``"phases"``.
        **options: ``graph`` and ``diff`` take ``rank``, ``mode`` and ``lowering`` (default: the module's own),
            ``module`` (a glob) and ``passes``; ``diff`` also takes ``pass_name`` and ``side_by_side=True``.
            ``structure``, ``graph`` and ``diff`` take ``unfold=True``, which writes out repeated layers. ``phases``
            takes ``schedule`` (default: the module's own).

    Returns:
        The view, ready to print.

    Raises:
        SDPError: If the view or an option does not exist.
    """
    if view in OF_A_RANK:
        options = {"rank": module.rank, "mode": module.mode, "lowering": module.lowering, **options}
        if options["lowering"] == module.lowering:
            options["passes"] = module.lowered.passes
    if view == "phases":
        options = {"schedule": module.schedule, **options}
    return show(Subject.of(module.lowered), view, **options)


def show(subject: Subject, view: str, **options: Any) -> Shown:
    """Shows one view of a subject; see `inspect` for the views and their options."""
    if view not in VIEWS:
        raise SDPError(f"Unknown view {view!r}; the views are {', '.join(VIEWS)}.{did_you_mean(view, VIEWS)}")
    known = _OPTIONS[view]
    for name in options:
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no options"
            raise SDPError(f"The view {view!r} has no option {name!r}; it {takes}.{did_you_mean(name, known)}")
    drawing = {name: options.pop(name) for name in ("unfold", "side_by_side") if name in options}
    data = VIEWS[view](subject, **options)
    return Shown(data, render(data, **drawing))


_OPTIONS = {
    "structure": ("unfold",),
    "owners": (),
    "graph": ("rank", "mode", "lowering", "module", "passes", "unfold"),
    "diff": ("rank", "mode", "lowering", "module", "passes", "pass_name", "unfold", "side_by_side"),
    "cost": (),
    "phases": ("schedule",),
}


def render(view: View, unfold: bool = False, side_by_side: bool = False) -> RenderableType:
    """Returns what rich prints for a view."""
    if isinstance(view, StructureView):
        return render_structure(view, unfold)
    if isinstance(view, GraphView):
        return render_graph(view, unfold)
    if isinstance(view, DiffView):
        return render_diff(view, unfold, side_by_side)
    if isinstance(view, OwnersView):
        return render_owners(view)
    if isinstance(view, CostView):
        return render_cost(view)
    assert isinstance(view, PhasesView)
    return render_phases(view)
