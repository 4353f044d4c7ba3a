"""``sdp-compile bench --one-of``: measures one worker of many, and writes its table, its JSON and its plot."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from sdp_compile.bench.one_of.settings import OneOfSettings
from sdp_compile.bench.plot import check_plot
from sdp_compile.cli.clean_errors import FAILED
from sdp_compile.cli.json_file import write_json
from sdp_compile.processes import interruptible
from sdp_compile.progress import stages


def run(settings: OneOfSettings, debug: bool = False) -> int:
    """Measures, prints and writes; the JSON file after each variant. Returns 1 where a variant has no figures."""
    if settings.plot_path is not None:
        check_plot(settings.plot_path)
    from sdp_compile.bench.one_of import run as measuring
    from sdp_compile.cli.one_of_report import render

    path = settings.json_path

    def made(result: Mapping[str, Any]) -> None:
        if path not in (None, "-"):
            write_json(path, result)

    with interruptible(), stages(1 + len(settings.runs)) as begin:
        result = measuring.run(settings, begin, made)
        begin("predicting communication")
        # What was delayed is measured already.
        if settings.delay is None and any(row["status"] == "ok" for row in result["variants"]):
            from sdp_compile.bench.one_of.predicted import add_predictions

            add_predictions(result, settings)
    if debug:
        details = [(row["name"], row["details"]) for row in result["variants"] if row.get("details")]
        sys.stderr.writelines(f"{name}:\n{text}\n" for name, text in details)
    Console(stderr=path == "-").print(render(result))
    write_json(path, result)
    good = [row for row in result["variants"] if row["status"] == "ok"]
    if settings.plot_path is not None and any(row["memory"] for row in good):
        from sdp_compile.bench.one_of.plot import write_memory_plot

        write_memory_plot(result, settings.plot_path)
    return 0 if len(good) == len(result["variants"]) else FAILED
