"""The tables of ``sdp-compile train``, from the report that the workers write as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

_MIB = 2**20


def render(report: Mapping[str, Any]) -> RenderableType:
    """Returns what each worker owns, and the assembled model's results."""
    run, policy, workers = report["run"], report["policy"], report["workers"]
    how = run["schedule"] or f"{policy['policy']}, {_owners(policy)}"
    how += ", sharded state" * run["sharded"] + ", rates by owners" * bool(report["rate_by_owners"])
    title = Text(
        f"GPT, {workers[0]['dense_parameters']:,} parameters · {len(workers)} workers · {how} · {run['steps']} steps · "
        f"{run['device']}",
        style="bold",
    )
    phases = [held(report["phases"])] if len(report["phases"]) > 1 else []
    return Group(Text(), title, Text(), *phases, owned(workers, len(phases) > 0), outcome(report))


def _owners(policy: Mapping[str, Any]) -> str:
    return f"coverage {policy['coverage']}" if "coverage" in policy else f"{policy.get('replicas')} replicas"


def held(phases: list[Mapping[str, Any]]) -> Table:
    """Returns one row per phase of a schedule: its policy, and the state of the worker that held most, measured."""
    table = Table(title="Phases", title_justify="left", title_style="italic", box=box.SIMPLE_HEAD)
    for heading in ("steps", "policy", "state", "of dense"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for phase in phases:
        policy, nbytes = phase["policy"], phase["state_bytes"]
        words = [policy["policy"], policy["masking"], _owners(policy)]
        if phase["resample_every"] is not None:
            words.append(f"{policy['design']}, drawn again every {phase['resample_every']} steps")
        if phase["alternate"] is not None:
            other = phase["alternate"]
            words.append(f"every {phase['alternate_every']} steps {other['masking']}, {_owners(other)}")
        state = ("", "") if nbytes is None else (f"{nbytes / _MIB:.1f} MiB", f"{phase['state_share']:.1%}")
        table.add_row(str(phase["steps"]), ", ".join(words), *state)
    return table


def owned(workers: list[Mapping[str, Any]], has_phases: bool = False) -> Table:
    """Returns one row per worker: what it holds, measured, against the dense model.

    Args:
        workers: The part ``workers`` of the report.
        has_phases: Whether it is that of one phase among several.
    """
    title = "What each worker owns" + " in the phase in which it holds most" * has_phases
    table = Table(title=title, title_justify="left", title_style="italic", box=box.SIMPLE_HEAD)
    for heading in ("worker", "parameters", "share", "gradients\n+ optimizer", "dense", "share", "with\nparameters"):
        table.add_column(heading, justify="right")
    for worker in workers:
        held = worker["gradient_bytes"] + worker["optimizer_bytes"]
        dense = worker["dense_gradient_bytes"] + worker["dense_optimizer_bytes"]
        table.add_row(
            str(worker["rank"]),
            f"{worker['parameters']:,}",
            f"{worker['parameters'] / worker['dense_parameters']:.1%}",
            f"{held / _MIB:.1f} MiB",
            f"{dense / _MIB:.1f} MiB",
            f"{held / dense:.1%}",
            f"{worker['state_share']:.1%}",
        )
    return table


def outcome(report: Mapping[str, Any]) -> Table:
    """Returns the assembled model's validation loss and the speed, beside those of the baselines if they were run."""
    table = Table(title="The assembled full model", title_justify="left", title_style="italic", box=box.SIMPLE_HEAD)
    table.add_column("training")
    for heading in ("steps", "seconds", "state", "loss\nbefore", "after", "tokens\nper second"):
        table.add_column(heading, justify="right")
    run, baseline, same_time = report["run"], report["baseline"], report["same_time"]
    own = {**run, **report, "state_bytes": max(worker["state_bytes"] for worker in report["workers"])}
    rows = [("subnetworks", own)]
    if baseline is not None:
        rows.append(("dense, equal steps", baseline))
    if same_time is not None:
        rows += [("dense, equal time", same_time["dense"]), ("small, equal time", same_time["small"])]
    for name, result in rows:
        loss = result["validation_loss"]
        before = f"{loss['before']:.3f}" if "before" in loss else ""
        state = f"{result['state_bytes'] / _MIB:.1f} MiB"
        figures = (f"{result['seconds']:.1f}", state, before, f"{loss['after']:.3f}")
        table.add_row(name, str(result["steps"]), *figures, f"{result['tokens_per_second']:,.0f}")
    if same_time is not None:
        parameters = same_time["small"]["parameters"]
        table.caption = f"small: a dense model of the subnetworks' size, {parameters:,} parameters"
        table.caption_justify = "left"
    return table
