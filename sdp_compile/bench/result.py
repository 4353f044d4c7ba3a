"""The result of a bench run: figures per variant and their ratios, as in docs/bench-json.md."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from os import cpu_count
from statistics import median
from typing import Any

from sdp_compile.bench.formula import flops_imbalance
from sdp_compile.bench.phases import summarise_schedule
from sdp_compile.bench.race import Entry, trace_path
from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.spread import Spread, ratios

MEMORY_KINDS = ("parameters", "buffers", "gradients", "optimizer", "activations", "state", "peak")


def summarise(settings: BenchSettings, entries: Sequence[Entry]) -> dict[str, Any]:
    """Returns the whole result as plain data."""
    good = {entry.variant.name: entry for entry in entries if not entry.reason}
    some = next((entry.workers[0] for entry in good.values()), {})
    return {
        "version": 1,
        "model": settings.model,
        "parameters": next((entry.workers[0]["parameters"] for name, entry in good.items() if name[:3] == "ddp"), None),
        "workers": settings.workers,
        "samples_per_worker": some.get("samples"),
        "tokens_per_worker": some.get("tokens"),
        "device": some.get("device"),
        "settings": asdict(settings),
        "machine": {
            "cores": cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": version("torch"),
        },
        "variants": [_variant(settings, entry, good) for entry in entries if entry.variant.kind != "schedule"],
        "schedules": [summarise_schedule(entry, good) for entry in entries if entry.variant.kind == "schedule"],
    }


def mistakes(result: dict[str, Any]) -> list[str]:
    """Returns a message for each worker whose traffic differs from the formula."""
    return [
        f"{variant['name']}: worker {rank} sent {sent:,.0f} bytes per step, but the formula gives {predicted:,.0f} "
        f"(+ {padding:,.0f} of padding)."
        for variant in result["variants"]
        if variant["status"] == "ok"
        for rank, (sent, predicted, padding, right) in enumerate(
            zip(*(variant["traffic"][key] for key in ("sent", "predicted", "padding", "as_predicted")), strict=True)
        )
        if not right
    ]


def _variant(settings: BenchSettings, entry: Entry, good: dict[str, Entry]) -> dict[str, Any]:
    variant = entry.variant
    head = {"name": variant.name, "label": variant.label, "compiled": variant.compiled, "wave": entry.wave}
    if entry.reason:
        return {**head, "status": "failed", "reason": entry.reason, "details": entry.details}
    seconds = Spread.of([turn.seconds for turn in entry.turns])
    workers = entry.workers
    flops = [worker["flops"] for worker in workers]
    return {
        **head,
        "status": "ok",
        "step_seconds": {**asdict(seconds), "turns": [asdict(turn) for turn in entry.turns]},
        "check_share": median(turn.check / turn.seconds for turn in entry.turns),
        "ratio": ratios(entry, good),
        "samples_per_second": sum(worker["samples"] for worker in workers) / seconds.median,
        "tokens_per_second": None
        if workers[0]["tokens"] is None
        else sum(worker["tokens"] for worker in workers) / seconds.median,
        "memory": {
            "most": {kind: max(worker["memory"][kind] for worker in workers) for kind in MEMORY_KINDS},
            "workers": [worker["memory"] for worker in workers],
        },
        "traffic": {key: [worker["traffic"][key] for worker in workers] for key in workers[0]["traffic"]},
        "flops_imbalance": 1.0 if flops[0] is None else flops_imbalance(flops),
        "losses": [worker["losses"] for worker in workers],
        "ready_seconds": max(worker["ready_seconds"] for worker in workers),
        "profile": _profile(settings, entry),
    }


def _profile(settings: BenchSettings, entry: Entry) -> dict[str, Any] | None:
    """The figures of worker 0, whose trace was written, and those of all workers."""
    if settings.profile_path is None:
        return None
    return {**entry.profile[0], "trace": trace_path(settings.profile_path, entry.variant), "workers": entry.profile}
