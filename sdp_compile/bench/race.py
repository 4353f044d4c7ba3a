"""The race: in each round, all variants take turns in random order. They never run at the same time.

If the processes of all variants need more memory than the machine has, they race in waves. The references (DDP and
FSDP2) take part in every wave, so that every ratio compares turns that were close in time.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdp_compile.bench.settings import BenchSettings
from sdp_compile.bench.team import Team, TeamFailure
from sdp_compile.bench.variants import REFERENCES, Variant

_RESERVE = 0.08
"""Share of the machine's memory to leave free."""


@dataclass(frozen=True)
class Turn:
    """One timed block of steps. Turns of the same ``wave`` and ``round`` were close in time.

    ``check`` is the processor time per step of the check that owners apply the same, without waiting for others.
    """

    wave: int
    round: int
    seconds: float
    check: float = 0.0


@dataclass
class Entry:
    """The measurements of one variant.

    Attributes:
        workers: What each worker measured apart from time, by rank.
        turns: The timed blocks.
        answers: For the variants that measure more than a step, each turn's answers by rank.
        profile: The exposed communication by rank, if it was asked for.
        wave: The first wave in which the variant took part.
        reason, details: Why the variant failed; empty if it did not.
    """

    variant: Variant
    workers: list[dict[str, Any]] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    answers: list[list[dict[str, Any]]] = field(default_factory=list)
    profile: list[dict[str, Any]] = field(default_factory=list)
    wave: int = 0
    reason: str = ""
    details: str = ""


@dataclass
class _Running:
    entry: Entry
    team: Team


def race(settings: BenchSettings, variants: Sequence[Variant], begin: Callable[[str], None]) -> list[Entry]:
    """Runs the race.

    Args:
        settings: The settings of the run.
        variants: The variants that take part.
        begin: Called with a description as each stage starts, `stages` times.

    Returns:
        The entries in the order of ``variants``.
    """
    entries = [Entry(variant) for variant in variants]
    references = [entry for entry in entries if entry.variant.base in REFERENCES]
    waiting = references + [entry for entry in entries if entry not in references]
    shuffle = random.Random(settings.seed).shuffle
    with tempfile.TemporaryDirectory(prefix="sdp-compile-bench-") as folder, ExitStack() as stack:
        running: list[_Running] = []
        wave = 0
        while waiting:
            wave += 1
            running += _start(waiting, wave, settings, Path(folder), stack, begin)
            for number in range(settings.rounds):
                shuffle(running)
                for one in list(running):
                    first = one.entry.wave == wave
                    if not _take_turn(one, Turn(wave, number, 0.0), settings, begin if first else _ignore):
                        running.remove(one)
            if settings.profile_path is not None:
                for one in [one for one in running if one.entry.wave == wave]:
                    if not _profile(one, trace_path(settings.profile_path, one.entry.variant), settings, begin):
                        running.remove(one)
            for one in [one for one in running if one.entry not in references]:
                one.team.stop()
                running.remove(one)
    return entries


def stages(settings: BenchSettings, variants: Sequence[Variant]) -> int:
    """Returns the number of stages of a race: each variant's start, its turns and its profile."""
    return len(variants) * (1 + settings.rounds + (settings.profile_path is not None))


def trace_path(folder: str, variant: Variant) -> str:
    """Returns the file of a variant's trace."""
    return str(Path(folder).resolve() / f"{variant.name}.json")


def _start(
    waiting: list[Entry],
    wave: int,
    settings: BenchSettings,
    folder: Path,
    stack: ExitStack,
    begin: Callable[[str], None],
) -> list[_Running]:
    """Starts waiting variants, as many as memory allows, but at least one that is not a reference."""
    started: list[_Running] = []
    needs = 0
    while waiting:
        entry, base = waiting[0], waiting[0].variant.base
        free, total = _memory()
        others = [one.entry.variant.base for one in started if one.entry.variant.base not in REFERENCES]
        forms = sum(other.variant.base == base for other in waiting)  # keep eager and compiled in one wave
        if others and base not in others and total and free - 1.25 * needs * forms < _RESERVE * total:
            break
        waiting.pop(0)
        entry.wave = wave
        begin(f"starting {entry.variant.name}")
        team = Team(entry.variant, settings, folder)
        stack.callback(team.stop)
        try:
            entry.workers = team.answers()
        except TeamFailure as failure:
            _fail(entry, team, failure)
            continue
        started.append(_Running(entry, team))
        needs = max(needs, free - _memory()[0])
    return started


def _take_turn(one: _Running, turn: Turn, settings: BenchSettings, begin: Callable[[str], None]) -> bool:
    """Takes one turn; returns whether it succeeded."""
    begin(f"round {turn.round + 1} of {settings.rounds}: {one.entry.variant.name}")
    try:
        answers = one.team.ask({"steps": settings.steps})
    except TeamFailure as failure:
        _fail(one.entry, one.team, failure)
        return False
    seconds = max(float(answer["seconds"]) for answer in answers)
    check = max(float(answer.get("check", 0.0)) for answer in answers)
    one.entry.turns.append(Turn(turn.wave, turn.round, seconds, check))
    if one.entry.variant.kind in ("local", "schedule"):
        one.entry.answers.append(answers)
    return True


def _profile(one: _Running, path: str, settings: BenchSettings, begin: Callable[[str], None]) -> bool:
    """Writes one variant's trace; returns whether it succeeded."""
    begin(f"profiling {one.entry.variant.name}")
    try:
        one.entry.profile = one.team.ask({"profile": path})
    except TeamFailure as failure:
        _fail(one.entry, one.team, failure)
        return False
    return True


def _fail(entry: Entry, team: Team, failure: TeamFailure) -> None:
    entry.reason, entry.details = str(failure), failure.details
    team.stop()


def _ignore(_: str) -> None:
    """A reference's turns in later waves do not count as stages."""


def _memory() -> tuple[int, int]:
    """Free and total memory in bytes; zeros if the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0, 0
    fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return fields.get("MemAvailable", 0), fields.get("MemTotal", 0)
