"""``sdp-compile plan``: prints a plan's report and writes the plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rich.console import Console

from sdp_compile.cli.json_file import write_text
from sdp_compile.cli.model_line import model_line
from sdp_compile.cli.subject import SubjectWords, subject_of
from sdp_compile.command_words import check_file, check_file_words, check_ranks


@dataclass(frozen=True)
class PlanSettings:
    """The options of one run of ``sdp-compile plan``; ``rank`` None lists no worker's own part.

    With ``schedule``, the plan is that of its first phase.
    """

    words: SubjectWords
    rank: int | None = None
    schedule: str | None = None
    json_path: str | None = None

    def __post_init__(self) -> None:
        check_ranks([] if self.rank is None else [self.rank], self.words.workers)
        check_file("--json", self.json_path)
        if self.schedule is not None:
            check_file_words("--schedule", self.schedule, "a schedule's name")


def run(settings: PlanSettings) -> None:
    """Plans, prints the report and writes the JSON; with ``--json -`` standard output holds the JSON alone."""
    words, schedule = settings.words, None
    if settings.schedule is not None:
        from sdp_compile.policies import resolve_schedule

        schedule = resolve_schedule(settings.schedule)  # before torch is loaded
        words = replace(words, policy=schedule.phases[0].policy)
    planned = subject_of(words)
    from sdp_compile.cli.plan_report import holdings

    plan = planned.subject.plan
    console = Console(stderr=settings.json_path == "-")
    console.print(model_line(planned.description), plan.report(), highlight=False)
    if schedule is not None:
        from sdp_compile.cli.plan_phases import phases

        console.print(phases(planned.subject.analysis, schedule, words.workers), highlight=False)
    if settings.rank is not None:
        console.print(holdings(plan, settings.rank), highlight=False)
    write_text(settings.json_path, plan.to_json())
