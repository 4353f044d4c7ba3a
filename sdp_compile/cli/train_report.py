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
    run, policy = report["run"], report["policy"]
    workers = report["workers"]
    title = Text(
        f"GPT, {workers[0]['dense_parameters']:,} parameters · {len(workers)} workers · "
        f"{policy['policy']}, {_owners(policy)} · {run['steps']} steps · {run['device']}",
        style="bold",
    )
    phases = [held(report["phases"])] if len(report["phases"]) > 1 else []
    return Group(Text(), title, Text(), *phases, owned(workers), outcome(report))


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


def owned(workers: list[Mapping[str, Any]]) -> Table:
    """Returns one row per worker: what it holds, measured, against the dense model."""
    table = Table(title="What each worker owns", title_justify="left", title_style="italic", box=box.SIMPLE_HEAD)
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
    """Returns the assembled model's validation loss and the speed, beside the dense baseline's if it was run."""
    table = Table(title="The assembled full model", title_justify="left", title_style="italic", box=box.SIMPLE_HEAD)
    table.add_column("training")
    for heading in ("validation loss before", "after", "tokens per second"):
        table.add_column(heading, justify="right")
    rows = [("subnetworks", report)]
    if report["baseline"] is not None:
        rows.append(("dense data parallel", report["baseline"]))
    for name, result in rows:
        loss = result["validation_loss"]
        table.add_row(name, f"{loss['before']:.3f}", f"{loss['after']:.3f}", f"{result['tokens_per_second']:,.0f}")
    return table
