"""What a plan says of itself: the report for a terminal, and findings to act on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdp_compile.ownership.owners import OwnerSet, OwnerSets
from sdp_compile.planning.cost import size

if TYPE_CHECKING:
    from sdp_compile.planning.plan import Plan

Severity = Literal["warning", "note"]

KINDS = {"axis": "axes", "block": "block families"}

MOST_ROWS = 12
"""Rows of each table; the rest is summed up in one."""

MOST_GROUPS = 16
"""Owner groups on one rank beyond which a collective per group and bucket costs more than it saves."""


@dataclass(frozen=True)
class Finding:
    """One thing that a user should know before training: what is so, and what to do about it."""

    severity: Severity
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.text}"


class Report:
    """The report of a plan. Rich prints it in colour; ``str()`` gives it as plain text."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [Text(_headline(self.plan), style="bold")]
        if self.plan.families:
            parts.append(_family_table(self.plan))
        parts.append(_worker_table(self.plan))
        if self.plan.frozen:
            parts.append(_frozen_table(self.plan))
        parts += [Text(f"- {note}") for note in self.plan.notes]
        parts += [Text(f"- {finding}", style="yellow") for finding in diagnose(self.plan)]
        return Group(*parts)

    def __str__(self) -> str:
        buffer = StringIO()
        Console(file=buffer, width=120, color_system=None, force_terminal=False).print(self)
        return buffer.getvalue()


def diagnose(plan: Plan) -> list[Finding]:
    """All findings of a plan, warnings first."""
    return sorted(_findings(plan), key=lambda finding: finding.severity != "warning")


def _findings(plan: Plan) -> Iterator[Finding]:
    if plan.workers == 1 or not plan.families:
        yield Finding("note", "Nothing is cut: every worker trains the whole model.")
        return
    shared = _shared_share(plan)
    if shared > 0.5:
        yield Finding(
            "warning",
            f"{shared:.0%} of the parameter bytes are shared by all workers, which bounds what "
            "partitioning can save; the frozen dimensions say why.",
        )
    for what, loads, dense in (
        ("memory", parameter_bytes(plan), dense_bytes(plan)),
        ("FLOPs", np.array([plan.flops(rank) for rank in range(plan.workers)]), plan.flops()),
    ):
        if loads.max() > 1.1 * loads.mean() > 0:
            yield Finding(
                "warning",
                f"The most loaded worker has {loads.max() / loads.mean():.2f} of the mean {what}; "
                "all wait for it. Try design='balanced', or another coverage.",
            )
        expected = what == "FLOPs" and plan.masking == "backward"  # it computes the full model
        if dense and loads.max() >= dense and not expected:
            yield Finding("warning", f"Some worker has all of the dense model's {what}: nothing is saved there.")
    coverage = plan.coverage()
    if coverage.cut is not None and coverage.cut.min == 1:
        yield Finding("note", "Some parameters have one owner only: their training is lost if that worker is.")
    elif plan.spectral_gap() < 1e-9:
        yield Finding(
            "warning",
            "The workers fall into groups that share no cut parameter, so these train on the data "
            "of their group alone. Choose other slots, or another design.",
        )
    groups = int(_added_up(plan, dict.fromkeys(plan.groups, 1)).max())
    if groups > MOST_GROUPS:
        yield Finding(
            "warning", f"A worker is in {groups} owner groups, each with collectives of its own. Use fewer slots."
        )
    used = set(plan.order)
    unused = [name for name, tensor in plan.state.items() if tensor.kind == "parameter" and name not in used]
    if unused:
        yield Finding(
            "note", f"{len(unused)} parameters are never used in forward, such as {unused[0]!r}; they get no gradient."
        )


def _headline(plan: Plan) -> str:
    if not plan.families:
        return f"{plan.workers} workers, each with the whole model"
    units = sum(family.units for family in plan.families)
    cut = " and ".join(_counted(plan, kind, plural) for kind, plural in KINDS.items() if _counted(plan, kind, plural))
    coverage = plan.coverage()
    mean = coverage.cut.mean if coverage.cut is not None else coverage.mean
    return (
        f"{plan.workers} workers, {cut} of {units} units, {mean:.2f} owners per cut element, "
        f"{_shared_share(plan):.1%} of the parameter bytes shared by all"
    )


def _counted(plan: Plan, kind: str, plural: str) -> str:
    count = sum(family.kind == kind for family in plan.families)
    return "" if not count else f"1 {kind if kind == 'axis' else 'block family'}" if count == 1 else f"{count} {plural}"


def _bytes_by_owners(plan: Plan) -> dict[OwnerSet, int]:
    known, nbytes = OwnerSets(), list[int]()
    for name, tensor in plan.state.items():
        for piece in plan.pieces(name) if tensor.kind == "parameter" else ():
            number = known.number(piece.owners)
            nbytes += [0] * (number + 1 - len(nbytes))
            nbytes[number] += piece.numel * tensor.dtype.itemsize
    return dict(zip(known.sets, nbytes, strict=True))


def _added_up(plan: Plan, figures: Mapping[OwnerSet, int]) -> NDArray[np.float64]:
    """Per worker the sum over the owner sets that it is in."""
    result = np.zeros(plan.workers)
    for owners, figure in figures.items():
        result[np.asarray(owners, dtype=np.int64)] += figure
    return result


def parameter_bytes(plan: Plan) -> NDArray[np.float64]:
    """The bytes of parameters that each worker owns."""
    return _added_up(plan, _bytes_by_owners(plan))


def dense_bytes(plan: Plan) -> int:
    """The bytes of all parameters."""
    return sum(tensor.nbytes for tensor in plan.state.values() if tensor.kind == "parameter")


def _shared_share(plan: Plan) -> float:
    """The share of the parameter bytes that all workers own."""
    return _bytes_by_owners(plan).get(tuple(range(plan.workers)), 0) / max(1, dense_bytes(plan))


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
