"""The phases of a schedule as a table for ``sdp-compile plan --schedule``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.table import Table

from sdp_compile.formatting import size

if TYPE_CHECKING:
    from sdp_compile.planning.plan import Plan
    from sdp_compile.policies import Policy, Schedule
    from sdp_compile.structure.analysis import Analysis


def phases(analysis: Analysis, schedule: Schedule, workers: int) -> RenderableType:
    """Returns one row per policy of a schedule: what the worker that has most of it holds, computes and sends.

    Args:
        analysis: The model.
        schedule: The schedule.
        workers: Number of workers.
    """
    from sdp_compile.planning.making import make_plan

    table = Table(title="Phases", title_justify="left", title_style="italic", box=box.SIMPLE_HEAD)
    for heading in ("share", "policy", "state", "of dense", "FLOPs", "sent\nper step", "moved\nat its start"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    before: Plan | None = None
    for phase in schedule.phases:
        for policy in phase.policies():
            plan = make_plan(analysis, policy, workers)
            ranks = [members[0] for members in plan.worker_classes()]
            most = max(plan.memory(rank).total for rank in ranks)
            words = [_words(policy)]
            if policy is phase.alternate:
                words.append(f"every {phase.alternate_every} steps")
            elif phase.resample_every is not None:
                words.append(f"drawn again every {phase.resample_every} steps")
            table.add_row(
                f"{phase.share:.0%}" if policy is phase.policy else "",
                ", ".join(words),
                size(most),
                f"{most / plan.memory().total:.0%}",
                f"{max(map(plan.flops, ranks)) / plan.flops():.0%}" if plan.masking == "forward" else "all",
                size(max(plan.communication(rank).total for rank in ranks)),
                "" if before is None else size(int(before.moves(plan).nbytes.sum(1).max(initial=0))),
            )
            before = plan
    table.caption = "Of the worker that has most: AdamW; what it sends at a change, values and two moments."
    table.caption_justify = "left"
    return table


def _words(policy: Policy) -> str:
    owners = f"coverage {policy.coverage:g}" if policy.coverage is not None else f"{policy.replicas} replicas"
    return f"{policy.describe()['policy']}, {policy.masking}, {owners}"
