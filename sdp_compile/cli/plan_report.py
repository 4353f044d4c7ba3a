"""What one worker owns in a plan, as a table for ``sdp-compile plan --rank``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sdp_compile.planning.plan import Plan

MOST_ROWS = 40
MOST_RUNS = 4


def holdings(plan: Plan, rank: int) -> RenderableType:
    """Returns the units that ``rank`` owns of each family, and what it pays."""
    from sdp_compile.formatting import size

    table = Table("family", "kind", "owned", "of", "units", title=f"What worker {rank} owns", box=box.SIMPLE_HEAD)
    table.title_justify, table.title_style = "left", "italic"
    for family in plan.families[:MOST_ROWS]:
        owned = [int(unit) for unit in plan.owned(family, rank)]
        table.add_row(Text(family.name), family.kind, str(len(owned)), str(family.units), runs(owned))
    if plan.families[MOST_ROWS:]:
        table.add_row(f"{len(plan.families) - MOST_ROWS} more", "", "", "", "")
    memory, sent = plan.memory(rank), plan.communication(rank)
    paid = Text(
        f"Worker {rank}: {size(memory.parameters)} of parameters, {size(memory.gradients)} of gradients, "
        f"{size(memory.optimizer_state)} of AdamW state; sends {size(sent.total)} per step in {sent.groups} owner "
        "groups."
    )
    return Group(table, paid)


def runs(numbers: Iterable[int]) -> str:
    """Returns ascending numbers as ranges, such as ``0-7, 12, 16-19``; the text of many ranges ends in an ellipsis."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in found[:MOST_RUNS]]
    return ", ".join([*shown, *["..."] * (len(found) > MOST_RUNS)])
