"""``plan.report()``: the summary of a plan with tables of families, workers and frozen dimensions, and its findings."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdp_compile.formatting import size
from sdp_compile.inspector.cost import Cost, dense_cost, merged, worker_costs
from sdp_compile.inspector.findings import diagnose
from sdp_compile.inspector.plain import place
from sdp_compile.inspector.plan_figures import alike_families, frozen_by_reason
from sdp_compile.inspector.render.style import times_text, workers_text
from sdp_compile.inspector.render.summary import Summary, summary_head, travel_lines
from sdp_compile.inspector.terminal import html, text
from sdp_compile.planning.finding import Finding
from sdp_compile.planning.plan import Plan

MOST_ROWS = 12
"""Rows of each table; the last row sums up the rest."""


class Report:
    """The report of a plan. Rich prints it in colour, ``str()`` returns plain text, a notebook shows HTML."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @property
    def findings(self) -> list[Finding]:
        """What is worth knowing before training, warnings first."""
        return diagnose(self.plan)

    @property
    def summary(self) -> Summary:
        """The plan in a few lines."""
        return Summary(self.plan)

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [summary_head(self.plan), travel_lines(self.plan)]
        if self.plan.families:
            parts.append(_family_table(self.plan))
        parts.append(_worker_table(self.plan))
        if self.plan.frozen:
            parts.append(_frozen_table(self.plan))
        parts += [Text(f"- {note}") for note in self.plan.notes]
        parts += [Text(f"- {finding}", style="yellow") for finding in self.findings]
        return Group(*parts)

    def __str__(self) -> str:
        return text(self)

    def _repr_html_(self) -> str:
        return html(self)


def _family_table(plan: Plan) -> Table:
    table = Table("family", "kind", "module", "units", "owners", "bytes", title="What is cut")
    rows = [(group[0], len(group), len(group) * sum(group[0].unit_bytes)) for group in alike_families(plan)]
    rows.sort(key=lambda row: -row[2])
    for family, count, nbytes in rows[:MOST_ROWS]:
        owners = sorted({len(owners) for owners in plan.owners(family).sets})
        owners_text = f"{owners[0]}" if len(owners) == 1 else f"{owners[0]} to {owners[-1]}"
        name = Text(family.name).append(times_text(count))
        table.add_row(name, family.kind, Text(family.module_path), f"{family.units}", owners_text, size(nbytes))
    rest = rows[MOST_ROWS:]
    if rest:
        units = sum(family.units * count for family, count, _ in rest)
        table.add_row(
            f"{sum(row[1] for row in rest)} more", "", "", f"{units}", "", size(sum(nbytes for *_, nbytes in rest))
        )
    return table


def _worker_table(plan: Plan) -> Table:
    table = Table(
        "workers",
        "parameters",
        "gradients",
        "AdamW state",
        "of dense",
        "FLOPs of dense",
        "sent per step",
        title="What each worker pays",
    )
    dense = dense_cost(plan)
    kinds = merged(worker_costs(plan), lambda cost: cost)
    for workers, cost in kinds[:MOST_ROWS]:
        table.add_row(workers_text(workers).removeprefix("workers "), *_paid(cost, dense))
    if kinds[MOST_ROWS:]:
        table.add_row(f"{len(kinds) - MOST_ROWS} more kinds of worker")
    table.add_row("dense", *_paid(dense, dense), style="dim")
    return table


def _paid(cost: Cost, dense: Cost) -> tuple[str, ...]:
    return (
        size(cost.parameters),
        size(cost.gradients),
        size(cost.optimizer_state),
        f"{cost.total / dense.total if dense.total else 1:.1%}",
        f"{cost.flops / dense.flops:.1%}" if dense.flops else "-",
        size(cost.sent),
    )


def _frozen_table(plan: Plan) -> Table:
    """The reasons for never cutting a dimension, each with its count and one example."""
    table = Table("times", "never cut because", "operator", "for example", "at", title="What is not cut")
    reasons = sorted(frozen_by_reason(plan.frozen).items(), key=lambda item: -len(item[1]))
    for (reason, operator), frozen in reasons[:MOST_ROWS]:
        example = Text(f"{frozen[0].parameter} dim {frozen[0].dim}")
        table.add_row(f"{len(frozen)}", Text(reason), Text(operator), example, Text(place(frozen[0].source)[0]))
    return table
