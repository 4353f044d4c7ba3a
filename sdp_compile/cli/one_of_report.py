"""The tables of ``sdp-compile bench --one-of``, from the same result that is written as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdp_compile.bench.one_of.settings import LINKS
from sdp_compile.cli.bench_report import failed_table, profile_table, variant_table

_MIB = 2**20


def render(result: Mapping[str, Any]) -> RenderableType:
    """Returns time, memory and predicted communication of each variant, and what failed."""
    rows: list[Mapping[str, Any]] = result["variants"]
    good = [row for row in rows if row["status"] == "ok"]
    parts: list[RenderableType] = [Text(), Text(_headline(result), style="bold"), Text()]
    if good:
        parts += [_time(good, result["settings"]["delay"]), _memory(good)]
    profiled = [(_name(row), row["profile"]) for row in good if row.get("profile")]
    if profiled:
        parts.append(profile_table(profiled, "this worker, by its trace"))
    predicted = [row for row in good if "predicted" in row and "reason" not in row["predicted"]]
    if predicted:
        parts.append(_communication(predicted))
    failed = [{**row, "name": _name(row)} for row in rows if row["status"] != "ok"]
    if failed:
        parts.append(failed_table(failed))
    return Group(*parts)


def _headline(result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    parts = [
        str(result["model"]),
        f"one worker of {result['one_of']}",
        str(result.get("device", "")),
        settings["dtype"],
    ]
    if result.get("samples"):
        tokens = f" ({result['tokens']:,} tokens)" if result.get("tokens") else ""
        parts.append(f"{result['samples']} samples{tokens}")
    parts.append(f"{settings['rounds']} rounds of {settings['steps']} steps")
    parts.append(f"torch {result['machine']['torch']}")
    return " · ".join(part for part in parts if part)


def _name(row: Mapping[str, Any]) -> str:
    return str(row["name"]) + ("" if row["coverage"] is None else f" {row['coverage']:g}")


def _time(rows: Sequence[Mapping[str, Any]], delay: str | None) -> Table:
    unit = "" if delay in (None, *LINKS) else " ms per MiB"
    traffic = "without traffic" if delay is None else f"with collectives delayed by {delay}{unit}"
    title = f"Milliseconds of a step {traffic} (median, range of rounds), its phases, and its ratio to DDP's"
    table = variant_table(title, "step", "range", "of\nDDP", "forward", "backward", "update")
    for row in rows:
        seconds, phases = row["step_seconds"], row["phase_seconds"]
        table.add_row(
            _name(row),
            f"{seconds['median'] * 1e3:.1f}",
            f"{(seconds['high'] - seconds['low']) * 1e3:.1f}",
            Text(_ratio(row, "step"), style="bold"),
            *(f"{phases[phase] * 1e3:.1f}" for phase in ("forward", "backward", "update")),
        )
    return table


def _ratio(row: Mapping[str, Any], what: str) -> str:
    value = row.get("of_ddp", {}).get(what)
    return "" if value is None else f"{value:.2f}"


def _memory(rows: Sequence[Mapping[str, Any]]) -> Table:
    title = "MiB at the peak of a step, its ratio to DDP's, the peaks of the phases, and what is held by kind"
    kinds = ("parameters", "gradients", "optimizer", "activations")
    columns = (
        "for-\nward",
        "back-\nward",
        "up-\ndate",
        "para-\nmeters",
        "gradi-\nents",
        "opti-\nmizer",
        "acti-\nvations",
    )
    table = variant_table(title, "peak", "of\nDDP", *columns)
    for row in rows:
        memory = row["memory"]
        if memory is None:
            table.add_row(_name(row), "not seen")
            continue
        figures = [*memory["phases"].values(), *(memory[kind] for kind in kinds)]
        peak = f"{memory['peak'] / _MIB:,.0f}"
        shown = [f"{nbytes / _MIB:,.0f}" for nbytes in figures]
        table.add_row(_name(row), peak, Text(_ratio(row, "peak"), style="bold"), *shown)
    return table


def _communication(rows: Sequence[Mapping[str, Any]]) -> Table:
    links = list(rows[0]["predicted"])
    columns = [f"{link}\n{what}" for link in links for what in ("traffic", "exposed")]
    title = "MiB sent per step, and predicted milliseconds of traffic: in all, and beyond what computing hides"
    table = variant_table(title, "sent", *columns)
    for row in rows:
        of_links = [row["predicted"][link] for link in links]
        figures = [f"{one[what] * 1e3:.1f}" for one in of_links for what in ("communication", "exposed")]
        table.add_row(_name(row), f"{of_links[0]['sent'] / _MIB:,.0f}", *figures)
    return table
