"""The report of a plan for a terminal or a notebook: what is cut, what is not and why, and what each worker pays."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdp_compile.formatting import size
from sdp_compile.inspector.findings import diagnose, shared_share
from sdp_compile.inspector.render.summary import Summary
from sdp_compile.inspector.terminal import html, text
from sdp_compile.planning.finding import Finding
from sdp_compile.planning.plan import Plan

KINDS = {"axis": "axes", "block": "block families"}

MOST_ROWS = 12
"""Rows of each table; the rest is summed up in one."""


class Report:
    """The report of a plan. Rich prints it in colour; ``str()`` gives it as plain text."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @property
    def findings(self) -> list[Finding]:
        """What a user should know before training, worst first."""
        return diagnose(self.plan)

    @property
    def summary(self) -> Summary:
        """The plan in a few lines."""
        return Summary(self.plan)

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [Text(_headline(self.plan), style="bold")]
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


def _headline(plan: Plan) -> str:
    if not plan.families:
        return f"{plan.workers} workers, each with the whole model"
    units = sum(family.units for family in plan.families)
    cut = " and ".join(_counted(plan, kind, plural) for kind, plural in KINDS.items() if _counted(plan, kind, plural))
    coverage = plan.coverage()
    mean = coverage.cut.mean if coverage.cut is not None else coverage.mean
    return (
        f"{plan.workers} workers, {cut} of {units} units, {mean:.2f} owners per cut element, "
        f"{shared_share(plan):.1%} of the parameter bytes shared by all"
    )


def _counted(plan: Plan, kind: str, plural: str) -> str:
    count = sum(family.kind == kind for family in plan.families)
    return "" if not count else f"1 {kind if kind == 'axis' else 'block family'}" if count == 1 else f"{count} {plural}"


def _family_table(plan: Plan) -> Table:
    table = Table("family", "kind", "module", "units", "owners", "bytes", title="What is cut")
    by_size = sorted(plan.families, key=lambda family: -sum(family.unit_bytes))
    for family in by_size[:MOST_ROWS]:
        counts = sorted({len(owners) for owners in plan.owners(family).sets})
        owners = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        table.add_row(
            family.name, family.kind, family.module_path, f"{family.units}", owners, size(sum(family.unit_bytes))
        )
    if by_size[MOST_ROWS:]:
        rest = by_size[MOST_ROWS:]
        nbytes = sum(sum(family.unit_bytes) for family in rest)
        table.add_row(f"{len(rest)} more", "", "", f"{sum(family.units for family in rest)}", "", size(nbytes))
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
    dense, flops = plan.memory(), plan.flops()
    for members in plan.worker_classes()[:MOST_ROWS]:
        rank = members[0]
        memory, communication = plan.memory(rank), plan.communication(rank)
        share = memory.total / dense.total if dense.total else 1.0
        table.add_row(
            _workers(members),
            size(memory.parameters),
            size(memory.gradients),
            size(memory.optimizer_state),
            f"{share:.1%}",
            f"{plan.flops(rank) / flops:.1%}" if flops else "-",
            size(communication.total),
        )
    if len(plan.worker_classes()) > MOST_ROWS:
        table.add_row(f"{len(plan.worker_classes()) - MOST_ROWS} more kinds of worker")
    sent = plan.communication(0).dense
    table.add_row(
        "dense",
        size(dense.parameters),
        size(dense.gradients),
        size(dense.optimizer_state),
        "100.0%",
        "100.0%" if flops else "-",
        size(sent),
        style="dim",
    )
    return table


def _frozen_table(plan: Plan) -> Table:
    """The reasons for dimensions that are never cut, each with how often it occurs and one example."""
    table = Table("times", "never cut because", "operator", "for example", "at", title="What is not cut")
    reasons: dict[tuple[str, str], list[int]] = {}
    for number, frozen in enumerate(plan.frozen):
        reasons.setdefault((frozen.reason, frozen.operator), []).append(number)
    for (reason, operator), numbers in sorted(reasons.items(), key=lambda item: -len(item[1]))[:MOST_ROWS]:
        first = plan.frozen[numbers[0]]
        table.add_row(f"{len(numbers)}", reason, operator, f"{first.parameter} dim {first.dim}", _place(first.source))
    return table


def _place(source: str) -> str:
    """The end of a source position: file and line, without the folders that all of them share."""
    return "/".join(source.strip().splitlines()[0].split("/")[-2:]) if source.strip() else ""


def _workers(members: list[int], most: int = 4) -> str:
    shown = ", ".join(map(str, members[:most]))
    return shown if len(members) <= most else f"{shown}, ... ({len(members)})"
