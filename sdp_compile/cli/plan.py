"""``sdp-compile plan``: prints a plan's report and writes the plan."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from sdp_compile.cli.json_file import write_text
from sdp_compile.cli.model_line import model_line
from sdp_compile.cli.subject import SubjectWords, subject_of
from sdp_compile.command_words import check_file, check_ranks


@dataclass(frozen=True)
class PlanSettings:
    """The options of one run of ``sdp-compile plan``; ``rank`` None lists no worker's own part."""

    words: SubjectWords
    rank: int | None = None
    json_path: str | None = None

    def __post_init__(self) -> None:
        check_ranks([] if self.rank is None else [self.rank], self.words.workers)
        check_file("--json", self.json_path)


def run(settings: PlanSettings) -> None:
    """Plans, prints the report and writes the JSON; with ``--json -`` standard output holds the JSON alone."""
    planned = subject_of(settings.words)
    from sdp_compile.cli.plan_report import holdings

    plan = planned.subject.plan
    console = Console(stderr=settings.json_path == "-")
    console.print(model_line(planned.description), plan.report(), highlight=False)
    if planned.schedule is not None:
        from sdp_compile.inspector import show

        console.print(show(planned.subject, "phases", schedule=planned.schedule), highlight=False)
    if settings.rank is not None:
        console.print(holdings(plan, settings.rank), highlight=False)
    write_text(settings.json_path, plan.to_json())
