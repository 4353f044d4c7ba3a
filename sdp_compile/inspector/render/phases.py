"""The view ``phases`` on a terminal: a table with a row for each policy and each change of plan."""

from __future__ import annotations

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from sdp_compile.formatting import size
from sdp_compile.inspector.phases import PhasesView


def render_phases(view: PhasesView) -> RenderableType:
    """Returns one row per policy and change of plan: what the worker that has most holds, computes and sends."""
    table = Table(title="Phases", title_justify="left", title_style="italic", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("policy")
    for heading in ("state", "of\ndense", "FLOPs", "sent\nper step", "of\nDDP", "moved"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, part in enumerate(view.parts):
        figures = [""] * 5
        if part.share:
            figures = [
                size(part.state),
                f"{part.state_share:.0%}",
                f"{part.flops_share:.0%}",
                size(part.sent),
                f"{part.sent_share:.0%}",
            ]
        steps = f"{part.share:.0%}" if view.steps is None else f"{part.share * view.steps:,.0f}"
        moved = size(part.moved) if number else ""
        table.add_row(steps if part.share else "", Text(part.words), *figures, moved)
    table.caption = f"Of the worker that has most; {view.optimizer}. Moved: what it sends where the plan changes."
    if view.rate_by_owners:
        share = "the share of the workers that own a parameter"
        table.caption += f"\nLearning rates: times {share}, to the power {view.rate_by_owners:g}."
    table.caption_justify = "left"
    return table
