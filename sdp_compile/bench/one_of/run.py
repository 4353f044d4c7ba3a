"""Measures the variants one after the other, each in a process of its own that takes its memory with it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from sdp_compile.bench.one_of.settings import OneOfSettings
from sdp_compile.bench.one_of.variants import reference_of
from sdp_compile.bench.variants import Variant
from sdp_compile.processes import worker_command

_LAST = 2000  # characters of a process's errors that are kept


def run(
    settings: OneOfSettings, begin: Callable[[str], None], made: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Measures all variants.

    Args:
        settings: The settings of the run.
        begin: Called with a description as each variant starts.
        made: Called with the result so far after each variant.

    Returns:
        The result as plain data, as in docs/bench-json.md.
    """
    rows: list[dict[str, Any]] = []
    if settings.profile_path is not None:
        Path(settings.profile_path).mkdir(exist_ok=True)
    result: dict[str, Any] = {
        "version": 1,
        "one_of": settings.one_of,
        "model": settings.model,
        "settings": {key: value for key, value in asdict(settings).items() if not key.endswith("_path")},
        "machine": {
            "cores": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": version("torch"),
        },
        "variants": rows,
    }
    with tempfile.TemporaryDirectory(prefix="sdp-compile-bench-") as folder:
        for number, (variant, coverage) in enumerate(settings.runs):
            begin(variant.name + ("" if coverage is None else f" at coverage {coverage:g}"))
            found = _measure(settings, variant, coverage, Path(folder) / f"{number}.json")
            rows.append(_row(variant, coverage, found))
            _compare(rows)
            for key in ("device", "samples", "tokens"):
                result.setdefault(key, found[key]) if key in found else None
            made(result)
    return result


def _measure(settings: OneOfSettings, variant: Variant, coverage: float | None, path: Path) -> dict[str, Any]:
    words = (settings.dumps(), variant.name, "-" if coverage is None else str(coverage), str(path))
    command = worker_command("sdp_compile.bench.one_of.worker", *words)
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=settings.timeout)
    except subprocess.TimeoutExpired:
        return {"status": "failed", "reason": f"not done within {settings.timeout:g} s; see --timeout", "details": ""}
    output = done.stdout.decode(errors="replace")[-_LAST:]
    if not path.exists():
        return {"status": "failed", "reason": f"its process ended with exit code {done.returncode}", "details": output}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _row(variant: Variant, coverage: float | None, found: Mapping[str, Any]) -> dict[str, Any]:
    row = {
        "name": variant.name,
        "label": variant.label,
        "compiled": variant.compiled,
        "coverage": coverage,
        **{key: value for key, value in found.items() if key not in ("device", "samples", "tokens")},
    }
    if row["status"] == "ok":
        seconds = row["step_seconds"]
        row["step_seconds"] = {"median": median(seconds), "low": min(seconds), "high": max(seconds), "rounds": seconds}
    return row


def _compare(rows: list[dict[str, Any]]) -> None:
    """Adds ``of_ddp`` to each row: its peak memory and its step time over DDP's."""
    from sdp_compile.bench.one_of.variants import VARIANTS

    good = {row["name"]: row for row in rows if row["status"] == "ok"}
    for row in good.values():
        reference = good.get(reference_of(VARIANTS[row["name"]]))
        if reference is None:
            continue
        row["of_ddp"] = {
            "peak": None
            if row["memory"] is None or reference["memory"] is None
            else row["memory"]["peak"] / reference["memory"]["peak"],
            "step": row["step_seconds"]["median"] / reference["step_seconds"]["median"],
        }
