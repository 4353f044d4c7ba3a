"""The table of ``sdp-compile simulate``, from the same result that is written as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdp_compile.cli.bench_report import variant_table
from sdp_compile.models.configuration import Configuration, describe

_MIB = 2**20


def render(result: Mapping[str, Any]) -> RenderableType:
    """Returns the cluster, the predicted steps, and their errors against measured ones."""
    cluster = result["cluster"]
    title = (
        f"{result['workers']} workers on {cluster['nodes']} nodes · "
        f"{cluster['flops'] / 1e12:,.3g} TFLOP/s each · " + ("measured here" if cluster["measured"] else "as given")
    )
    links = " · ".join(
        f"{name} {1e-9 / link['seconds_per_byte'] if link['seconds_per_byte'] else float('inf'):,.3g} GB/s, "
        f"{link['latency'] * 1e6:,.0f} us"
        for name, link in (("inside a node", cluster["intra"]), ("between nodes", cluster["inter"]))
    )
    found = result["configuration"]
    configuration = Configuration(found["origin"], found["source"] or "", tuple(found["changes"]))
    name = Text(describe(result["model"], configuration, found["parameters"]), style="italic")
    parts: list[RenderableType] = [
        Text(),
        name,
        Text(title, style="bold"),
        Text(links, style="dim"),
        Text(),
        _steps(result),
    ]
    if cluster["measured"]:
        parts.append(_errors(result))
    names = dict.fromkeys(ratio["name"] for ratio in result["sensitivity"])
    parts += [_ratios(name, [ratio for ratio in result["sensitivity"] if ratio["name"] == name]) for name in names]
    if result["schedule"]:
        parts += [
            _phases(result["schedule"]),
            _changes(result["schedule"]),
            Text(_mean(result["schedule"]), style="bold"),
        ]
    parts += [Text(f"- {assumption}", style="dim") for assumption in result["assumptions"]]
    parts += [Text(f"- {line}", style="yellow") for line in _too_large(result)]
    parts += [Text(f"- {row['name']}: {row['reason']}", style="yellow") for row in result["variants"] if row["reason"]]
    return Group(*parts)


def _too_large(result: Mapping[str, Any]) -> Iterator[str]:
    """Yields which variants do not fit into the memory of a worker."""
    memory = result["memory"]
    held = [(row["name"], row["predicted"]["state"]) for row in result["variants"] if row["predicted"]]
    for row in result["schedule"]["parts"] if result["schedule"] else ():
        held += [(f"phase {row['phase']} ({row['words']})", row["predicted"]["state"])] if row["share"] else []
    for name, state in held:
        if memory is not None and state > memory:
            yield (
                f"{name}: {state / 1e9:,.3g} GB of parameters, gradients and AdamW state do not fit into the "
                f"{memory / 1e9:,.3g} GB of a worker."
            )


def _ratios(name: str, ratios: Sequence[Mapping[str, Any]]) -> Table:
    """Steps over DDP's by link (rows) and batch (columns)."""
    scales = list(dict.fromkeys(ratio["scale"] for ratio in ratios))
    title = f"{name}: step over DDP's by link between nodes, and times as many samples"
    table = variant_table(title, *(f"x {scale}" for scale in scales))
    for link in dict.fromkeys(ratio["link"] for ratio in ratios):
        table.add_row(link, *(f"{ratio['of_ddp']:.2f}" for ratio in ratios if ratio["link"] == link))
    return table


def _steps(result: Mapping[str, Any]) -> Table:
    """Steps in milliseconds; a step includes the communication that no computation hides."""
    rows = [row for row in result["variants"] if row["predicted"]]
    dense = next((row["predicted"]["seconds"] for row in rows if row["name"] == "ddp"), None)
    table = variant_table(
        "Predicted step in milliseconds; MiB sent by the worker that sends most",
        "step",
        "of\nDDP",
        "for-\nward",
        "back-\nward",
        "ex-\nposed",
        "update",
        "commu-\nnication",
        "MiB\nsent",
        "bound",
        "bucket\nMiB",
        "state\nGB",
    )
    for row in rows:
        step = row["predicted"]
        parts = ("forward", "backward", "exposed", "update", "communication")
        table.add_row(
            row["name"],
            _milliseconds(step["seconds"]),
            Text(f"{step['seconds'] / dense:.2f}" if dense else "", style="bold"),
            *(_milliseconds(step[part]) for part in parts),
            f"{step['sent'] / _MIB:,.1f}",
            step["bound"],
            f"{step['bucket_bytes'] / _MIB:,.3g}" if step["bucket_bytes"] else "",
            f"{step['state'] / 1e9:,.3g}",
        )
    return table


def _phases(schedule: Mapping[str, Any]) -> Table:
    """The step of each policy of a schedule, and their mean."""
    table = variant_table(
        f"{schedule['name']}: predicted step of each phase in milliseconds",
        "share",
        "step",
        "of\nDDP",
        "of\nFSDP2",
        "ex-\nposed",
        "MiB\nsent",
        "bound",
        "state\nGB",
        "of\nDDP",
        first="phase",
    )
    for row in schedule["parts"]:
        if row["share"]:
            step = row["predicted"]
            table.add_row(
                f"{row['phase']} {row['words']}",
                f"{row['share']:.0%}",
                _milliseconds(step["seconds"]),
                Text(f"{step['seconds'] / schedule['ddp']['seconds']:.2f}", style="bold"),
                f"{step['seconds'] / schedule['fsdp2']['seconds']:.2f}",
                _milliseconds(step["exposed"]),
                f"{step['sent'] / _MIB:,.1f}",
                step["bound"],
                f"{step['state'] / 1e9:,.3g}",
                f"{step['state'] / schedule['ddp']['state']:.2f}",
            )
    return table


def _changes(schedule: Mapping[str, Any]) -> Table:
    """The changes of plan; how many mean steps each takes."""
    table = variant_table(
        "Predicted changes of plan, with AdamW",
        "milli-\nseconds",
        "in mean\nsteps",
        "MiB sent\nby one",
        "GiB sent\nin all",
        "how often",
        first="to",
    )
    for row in schedule["parts"]:
        if (change := row["change"]) is not None:
            table.add_row(
                f"{row['phase']} {row['words']}",
                _milliseconds(change["seconds"]),
                Text(f"{change['seconds'] / schedule['step_seconds']:.2f}", style="bold"),
                f"{change['sent'] / _MIB:,.1f}",
                f"{change['total'] / 2**30:,.3g}",
                f"{1000 * row['rate']:.3g} in 1,000 steps" if row["rate"] else "once",
            )
    return table


def _mean(schedule: Mapping[str, Any]) -> str:
    recurring = schedule["changing_seconds"]
    more = f", {_milliseconds(recurring)} of them changes of plan that recur" if recurring else ""
    return (
        f"Mean step of {schedule['name']}: {_milliseconds(schedule['step_seconds'] + recurring)} ms{more}; "
        f"{schedule['of_ddp']:.2f} of DDP's, {schedule['of_fsdp2']:.2f} of FSDP2's. "
        f"Changes that happen once: {_milliseconds(schedule['once_seconds'])} ms in all."
    )


def _milliseconds(seconds: float) -> str:
    """Returns about three significant digits."""
    value = seconds * 1e3
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _errors(result: Mapping[str, Any]) -> Table:
    """Predicted beside measured steps; ratios to DDP vary less between runs than times."""
    rows = [row for row in result["variants"] if row["predicted"] and (row["measured"] or {}).get("status") == "ok"]
    dense = next((row for row in rows if row["name"] == "ddp"), None)
    table = variant_table(
        "Predicted and measured in this run: milliseconds, in ratio to DDP's, MiB sent",
        "pre-\ndicted",
        "mea-\nsured",
        "error",
        "of DDP",
        "mea-\nsured",
        "sent",
        "counted",
    )
    for row in rows:
        predicted, measured = row["predicted"]["seconds"], row["measured"]["step_seconds"]["median"]
        ratios = ("", "")
        if dense is not None:
            ratios = (
                f"{predicted / dense['predicted']['seconds']:.2f}",
                f"{row['measured']['ratio']['ddp']['median']:.2f}",
            )
        table.add_row(
            row["name"],
            f"{predicted * 1e3:,.0f}",
            f"{measured * 1e3:,.0f}",
            Text(f"{predicted / measured - 1:+.0%}", style="bold"),
            *ratios,
            f"{row['predicted']['sent'] / _MIB:,.2f}",
            f"{max(row['measured']['traffic']['sent']) / _MIB:,.2f}",
        )
    return table
