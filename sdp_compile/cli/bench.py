"""``sdp-compile bench``: runs the race, and writes its tables, its JSON and its plot."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from sdp_compile.bench.plot import check_plot
from sdp_compile.bench.settings import GPT, BenchSettings
from sdp_compile.cli.clean_errors import FAILED
from sdp_compile.cli.json_file import write_json
from sdp_compile.cli.model_line import tell_memory
from sdp_compile.models.configuration import FACTORY, Configuration, Loaded, to_dict
from sdp_compile.models.words import parse_model
from sdp_compile.policies import resolve_schedule
from sdp_compile.processes import interruptible
from sdp_compile.progress import stages


def run(settings: BenchSettings, debug: bool = False) -> int:
    """Races, prints and writes. Returns 1 where a variant has no figures or its traffic differs from the formula."""
    if settings.plot_path is not None:
        check_plot(settings.plot_path)
    if settings.schedule is not None:
        resolve_schedule(settings.schedule)  # before torch is loaded
    from sdp_compile.bench import race
    from sdp_compile.bench.plot import write_plot
    from sdp_compile.bench.result import mistakes, summarise
    from sdp_compile.cli.bench_report import render

    if settings.profile_path is not None:
        Path(settings.profile_path).mkdir(exist_ok=True)
    outline = _full_size(settings)
    # With --json - standard output holds the JSON alone.
    console = Console(stderr=settings.json_path == "-")
    variants = settings.chosen
    with interruptible(), stages(race.stages(settings, variants)) as begin:
        entries = race.race(settings, variants, begin)
    result = summarise(settings, entries)
    described = to_dict(_small(settings), result["parameters"]) if outline is None else outline.to_dict()
    result["configuration"] = described
    if debug:
        sys.stderr.writelines(f"{entry.variant.name}:\n{entry.details}" for entry in entries if entry.details)
    console.print(render(result))
    write_json(settings.json_path, result)
    if settings.plot_path is not None and any(not entry.reason for entry in entries):
        write_plot(result, settings.plot_path)
    wrong = mistakes(result)
    for line in wrong:
        Console(stderr=True).print(f"[bold red]Traffic:[/] {line}", soft_wrap=True, highlight=False)
    return FAILED if wrong or any(entry.reason for entry in entries) else 0


def _full_size(settings: BenchSettings) -> Loaded | None:
    """Returns the model without weights where ``--full`` is given, and says what memory its workers need."""
    if settings.size != "full":
        return None
    from sdp_compile.models.spec import load

    outline = load(settings.model, settings.inputs, settings.overrides, "full", weights=False)
    held = f"weights, gradients and AdamW state of {settings.workers} workers, without activations"
    tell_memory(outline, settings.model, 16 * settings.workers, held)
    return outline


def _small(settings: BenchSettings) -> Configuration:
    """Returns the configuration that was raced without ``--full``."""
    if settings.model == GPT or parse_model(settings.model).kind == "factory":
        return FACTORY
    return Configuration("small", changes=settings.overrides)
