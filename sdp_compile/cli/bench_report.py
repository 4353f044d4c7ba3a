"""The tables of ``sdp-compile bench``, from the same result that is written as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sdp_compile.bench.variants import COMPILED
from sdp_compile.models.configuration import Configuration, describe

_MIB = 2**20


def render(result: Mapping[str, Any]) -> RenderableType:
    """Returns time, memory and traffic of each variant, and what failed."""
    variants: list[Mapping[str, Any]] = result["variants"]
    good = [variant for variant in variants if variant["status"] == "ok"]
    parts: list[RenderableType] = [Text(), Text(_headline(result), style="bold"), Text()]
    if good:
        parts += [_time(good), _memory(good), _traffic(good)]
    for schedule in result["schedules"]:
        parts += [_schedule(result, schedule)] if schedule["status"] == "ok" else []
    profiled = [(variant["name"], variant["profile"]) for variant in good if variant.get("profile")]
    if profiled:
        parts.append(profile_table(profiled, "worker 0, by its trace"))
    failed = [variant for variant in [*variants, *result["schedules"]] if variant["status"] != "ok"]
    if failed:
        parts.append(failed_table(failed))
    return Group(*parts)


def _headline(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    found = result["configuration"]
    configuration = Configuration(found["origin"], found["source"] or "", tuple(found["changes"]))
    parts = [describe(result["model"], configuration, result["parameters"])]
    parts.append(f"{result['workers']} workers on {machine['cores']} cores ({result['device']})")
    if result["samples_per_worker"]:
        parts.append(f"{result['samples_per_worker']} samples per worker and step")
    settings = result["settings"]
    parts.append(f"{settings['rounds']} rounds of {settings['steps']} steps")
    return " · ".join(parts)


def variant_table(title: str, *columns: str, first: str = "variant") -> Table:
    """A table of figures with one row per variant, or per what ``first`` names."""
    table = Table(title=title, title_justify="left", title_style="italic", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=first == "variant")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _time(variants: Sequence[Mapping[str, Any]]) -> Table:
    """Step times in ratio to the eager peers; with compiled variants also to compiled DDP and to the same one eager."""
    compiled = any(variant["compiled"] for variant in variants)
    unit = "tokens" if variants[0]["tokens_per_second"] else "samples"
    table = variant_table(
        "Step time in seconds (median, interquartile range), and its ratio to peers of the same round",
        "step",
        "IQR",
        "of\nDDP",
        "of\nFSDP2",
        *(("of DDP\n+compile", "of its\neager") if compiled else ()),
        f"{unit}\nper s",
    )
    for variant in variants:
        seconds = variant["step_seconds"]
        itself = variant["name"].removesuffix(COMPILED)
        rate = variant["tokens_per_second"] or variant["samples_per_second"]
        table.add_row(
            variant["name"],
            f"{seconds['median']:.3f}",
            f"{seconds['high'] - seconds['low']:.3f}",
            Text(_ratio(variant, "ddp"), style="bold"),
            _ratio(variant, "fsdp2"),
            *(_ratio(variant, "ddp" + COMPILED), _ratio(variant, itself) * variant["compiled"])[: 2 * compiled],
            f"{rate:,.0f}",
        )
    return table


def _ratio(variant: Mapping[str, Any], peer: str) -> str:
    ratio = variant["ratio"].get(peer)
    return "" if ratio is None else f"{ratio['median']:.2f}"


def _memory(variants: Sequence[Mapping[str, Any]]) -> Table:
    dense = next((variant for variant in variants if variant["name"].removesuffix(COMPILED) == "ddp"), None)
    table = variant_table(
        "MiB of the worker that holds most (distinct storages), its state against DDP's, its process's growth",
        "para-\nmeters",
        "buf-\nfers",
        "gradi-\nents",
        "opti-\nmizer",
        "state",
        "of\nDDP",
        "acti-\nvations",
        "peak",
    )
    for variant in variants:
        most = variant["memory"]["most"]
        share = "" if dense is None else f"{most['state'] / dense['memory']['most']['state']:.2f}"
        kinds = ("parameters", "buffers", "gradients", "optimizer", "state")
        figures = [f"{most[kind] / _MIB:.1f}" for kind in kinds]
        table.add_row(
            variant["name"],
            *figures,
            Text(share, style="bold"),
            f"{most['activations'] / _MIB:.1f}",
            f"{most['peak'] / _MIB:.0f}",
        )
    return table


def _traffic(variants: Sequence[Mapping[str, Any]]) -> Table:
    """Traffic of the worker that sends most; the comparison with the formula covers all workers."""
    table = variant_table(
        "MiB that a worker sends per step (payloads times ring factors), and the balance of the work",
        "counted",
        "by the\nformula",
        "padding",
        "",
        "collec-\ntives",
        "FLOPs:\nmost/mean",
    )
    for variant in variants:
        traffic = variant["traffic"]
        worst = max(range(len(traffic["sent"])), key=lambda rank: traffic["sent"][rank])
        right = all(traffic["as_predicted"])
        table.add_row(
            variant["name"],
            f"{traffic['sent'][worst] / _MIB:.2f}",
            f"{traffic['predicted'][worst] / _MIB:.2f}",
            f"{traffic['padding'][worst] / _MIB:.3f}",
            Text("equal" if right else "DIFFERS", style="green" if right else "bold red"),
            str(traffic["collectives"][worst]),
            f"{variant['flops_imbalance']:.3f}",
        )
    return table


def profile_table(rows: Sequence[tuple[str, Mapping[str, Any]]], whose: str) -> Table:
    """A table of exposed communication: the name and the profile of each variant, and who was profiled."""
    table = variant_table(
        f"Milliseconds per step of {whose}: collectives that run or are waited for, in all and while nothing computes",
        "step",
        "commu-\nnication",
        "exposed",
        "hidden\nshare",
    )
    for name, profile in rows:
        seconds = [profile[f"{what}_seconds"] for what in ("step", "communication", "exposed")]
        hidden = "" if profile["overlap_share"] is None else f"{profile['overlap_share']:.2f}"
        table.add_row(name, *(f"{one * 1e3:.1f}" for one in seconds), Text(hidden, style="bold"))
    return table


def failed_table(variants: Sequence[Mapping[str, Any]]) -> Table:
    """A table of the variants without figures, and why."""
    table = Table(
        title="Without figures", title_justify="left", title_style="italic", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("variant", no_wrap=True)
    table.add_column("why")
    for variant in variants:
        table.add_row(variant["name"], Text(variant["reason"], style="yellow"))
    return table


def _schedule(result: Mapping[str, Any], schedule: Mapping[str, Any]) -> RenderableType:
    """The phases of a schedule and its changes of plan; compiling apart."""
    form = ", sharded state" * schedule["sharded"] + ", compiled" * schedule["compiled"]
    table = variant_table(
        f"{result['settings']['schedule']}{form}: seconds of steps, and of changes of plan, "
        "also in units of the run's median step",
        "share",
        "step",
        "of\nDDP",
        "state\nMiB",
        "change\nof plan",
        "in\nsteps",
        "MiB\nsent",
        "step\nafter",
        "in\nsteps",
        first="phase",
    )
    for part in schedule["parts"]:
        change, figures = part["change"], [""] * 5
        if change is not None:
            figures = [
                f"{change['seconds']['median']:.3f}",
                f"{change['steps']['median']:.2f}",
                f"{change['sent'] / _MIB:.1f}",
                f"{change['next_step_seconds']['median']:.3f}",
                f"{change['next_steps']['median']:.2f}",
            ]
        table.add_row(
            f"{part['phase']} {part['words']}",
            f"{part['share']:.0%}" if part["share"] else "",
            f"{part['step_seconds']['median']:.3f}",
            f"{part['ratio']['ddp']['median']:.2f}" if "ddp" in part["ratio"] else "",
            f"{part['state'] / _MIB:.1f}",
            *figures,
        )
    peers = [f"{ratio['median']:.2f} of {peer}'s" for peer, ratio in schedule["ratio"].items()]
    return Group(
        table,
        Text(
            f"Median step {schedule['step_seconds']['median']:.3f} s; mean step by shares "
            f"{schedule['mean_step_seconds']['median']:.3f} s" + "".join(f", {peer}" for peer in peers) + ". "
            f"First compilation {schedule['compile_seconds']['median']:.1f} s, "
            f"first step {schedule['first_step_seconds']['median']:.3f} s."
        ),
    )
