"""The result of the runs through a schedule: steps of phases, and changes of plan in units of the run's median step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from sdp_compile.bench.race import Entry
from sdp_compile.bench.spread import Spread, ratios

Run = Mapping[str, Any]
"""What `run_through` measured, of each figure that of the worker that took longest."""


def summarise_schedule(entry: Entry, good: Mapping[str, Entry]) -> dict[str, Any]:
    """Returns the figures of one variant of a schedule.

    Args:
        entry: Its measurements.
        good: All entries with figures by name.
    """
    variant = entry.variant
    head = {"name": variant.name, "label": variant.label, "compiled": variant.compiled, "sharded": variant.sharded}
    if entry.reason:
        return {**head, "status": "failed", "reason": entry.reason, "details": entry.details}
    runs = [slowest([answer["run"] for answer in of_all]) for of_all in entry.answers]

    def spread(figure: Callable[[Run], float]) -> dict[str, float]:
        return asdict(Spread.of([figure(run) for run in runs]))

    return {
        **head,
        "status": "ok",
        "compile_seconds": spread(lambda run: run["compile"]),
        "first_step_seconds": spread(lambda run: run["first_step"]),
        "step_seconds": spread(lambda run: run["step"]),
        "mean_step_seconds": spread(lambda run: run["seconds"]),
        "ratio": ratios(entry, good),
        "parts": [
            {**_part(number, part, spread), "ratio": _ratios_of_part(number, runs, entry, good)}
            for number, part in enumerate(runs[0]["parts"])
        ],
        "runs": runs,
    }


def slowest(answers: list[Any]) -> Any:
    """Returns of all workers' figures the largest ones, in the same structure; what is no figure is worker 0's."""
    first = answers[0]
    if isinstance(first, Mapping):
        return {key: slowest([answer[key] for answer in answers]) for key in first}
    if isinstance(first, list):
        return [slowest(list(items)) for items in zip(*answers, strict=True)]
    return max(answers) if isinstance(first, float | int) and not isinstance(first, bool) else first


def _ratios_of_part(
    number: int, runs: Sequence[Run], entry: Entry, good: Mapping[str, Entry]
) -> dict[str, dict[str, float]]:
    """Returns the ratios of a part's steps to those of each reference, in the same round."""
    seconds = [run["parts"][number]["step"] for run in runs]
    turns = [replace(turn, seconds=own) for turn, own in zip(entry.turns, seconds, strict=True)]
    return ratios(replace(entry, turns=turns), good)


def _part(number: int, part: Mapping[str, Any], spread: Callable[..., dict[str, float]]) -> dict[str, Any]:
    kept = {key: part[key] for key in ("phase", "kind", "words", "policy", "share", "rate", "state")}
    change = None
    if part["change"] is not None:
        figures = {"seconds": "seconds", "next_step_seconds": "next_step"}
        change = {
            name: spread(lambda run, key=key: run["parts"][number]["change"][key]) for name, key in figures.items()
        }
        change["steps"] = spread(lambda run: run["parts"][number]["change"]["seconds"] / run["step"])
        change["next_steps"] = spread(lambda run: run["parts"][number]["change"]["next_step"] / run["step"])
        change |= {key: part["change"][key] for key in ("sent", "total")}
    return {**kept, "step_seconds": spread(lambda run: run["parts"][number]["step"]), "change": change}
