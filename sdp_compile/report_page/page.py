"""Renders the views of a plan as one HTML file. All text is escaped, and the page loads nothing."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sdp_compile._version import __version__
from sdp_compile.formatting import metric, size
from sdp_compile.inspector import cost_view, diff_view, graph_view, structure_view
from sdp_compile.report_page.bars import charts
from sdp_compile.report_page.folding import neighbours
from sdp_compile.report_page.listing import kind, listing
from sdp_compile.report_page.members import members, named
from sdp_compile.report_page.phases import phases_of
from sdp_compile.report_page.reasons import reasons
from sdp_compile.toml import to_toml

if TYPE_CHECKING:
    from sdp_compile.inspector.subject import Subject
    from sdp_compile.passes import Pass
    from sdp_compile.policies import Schedule

MOST_GROUP_ROWS = 16
"""Owner groups with a row of their own."""


def report_html(
    subject: Subject,
    rank: int = 0,
    command: str = "",
    passes: tuple[Pass, ...] = (),
    description: str = "",
    schedule: Schedule | None = None,
) -> str:
    """Returns the report page of a plan; the same arguments give the same page, byte for byte.

    Args:
        subject: The capture with its structure and plan.
        rank: The worker whose rewritten graph is listed.
        command: The command line that made the page; shown if not empty.
        passes: The passes to run; default: the pipeline of the plan.
        description: Says which model this is, such as its configuration; shown if not empty.
        schedule: The schedule that the plan is of; its phases are shown, too.

    Raises:
        PlanError: If the rank does not exist.
    """
    graph = graph_view(subject, rank, passes=passes)
    structure = structure_view(subject)
    cost = cost_view(subject)
    plan = subject.plan
    groups = sorted(cost.groups, key=lambda group: -group.payload)
    phases, maps = phases_of(subject, schedule)
    counts: dict[str, int] = {}
    for row in graph.rows:
        counts[kind(row)] = counts.get(kind(row), 0) + 1
    page: str = (
        _environment()
        .get_template("page.html.j2")
        .render(
            structure=structure,
            cost=cost,
            graph=graph,
            graph_data=listing(graph),
            kinds=counts,
            steps=diff_view(subject, rank, passes=passes).steps,
            phases=phases,
            maps=maps,
            shown_phase=next(one.name for one in maps if one.is_shown),
            charts=charts(cost),
            groups=groups[:MOST_GROUP_ROWS],
            groups_left_out=groups[MOST_GROUP_ROWS:],
            plan=plan,
            coverage=plan.coverage(),
            findings=plan.diagnose(),
            policy=to_toml(plan.policy) if schedule is None else schedule.to_toml(),
            command=command,
            description=description,
            version=__version__,
        )
    )
    return page


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sdp_compile.report_page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Any] = {
        "bytes": size,
        "count": lambda number: f"{number:,}",
        "millions": _millions,
        "share": lambda share: f"{share:.1%}",
        "flops": metric,
        "members": members,
        "named": named,
        "neighbours": neighbours,
        "reasons": reasons,
    }
    environment.filters.update(filters)
    return environment


def _millions(number: int) -> str:
    """Writes a number of parameters: ``124.4 M``."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            return f"{number / limit:,.1f} {unit}"
    return str(number)
