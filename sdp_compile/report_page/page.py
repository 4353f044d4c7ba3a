"""One HTML file from the views of a plan: all text escaped, nothing loaded from anywhere."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sdp_compile._version import __version__
from sdp_compile.formatting import size
from sdp_compile.inspector import cost_view, diff_view, graph_view, owners_view, structure_view
from sdp_compile.report_page.bars import charts, flops
from sdp_compile.report_page.folding import neighbours
from sdp_compile.report_page.listing import kind, listing
from sdp_compile.report_page.members import members, named
from sdp_compile.report_page.owner_map import OwnerMap
from sdp_compile.report_page.reasons import reasons
from sdp_compile.toml import to_toml

if TYPE_CHECKING:
    from sdp_compile.inspector.subject import Subject
    from sdp_compile.passes import Pass

MOST_GROUPS = 16


def report_html(subject: Subject, rank: int = 0, command: str = "", passes: tuple[Pass, ...] = ()) -> str:
    """The page as text. ``rank`` is the worker whose rewritten graph is listed, ``command`` what made the page.

    ``passes`` is the pipeline that rewrites it, by default the plan's own.

    The same subject gives the same page, byte for byte. Raises `PlanError` for a rank that does not exist.
    """
    graph = graph_view(subject, rank, passes=passes)
    structure = structure_view(subject)
    cost = cost_view(subject)
    plan = subject.plan
    groups = sorted(cost.groups, key=lambda group: -group.payload)
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
            owner_map=OwnerMap(owners_view(subject)),
            charts=charts(cost),
            groups=groups[:MOST_GROUPS],
            groups_left_out=groups[MOST_GROUPS:],
            plan=plan,
            coverage=plan.coverage(),
            findings=plan.diagnose(),
            policy=to_toml(plan.policy),
            command=command,
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
        "flops": flops,
        "members": members,
        "named": named,
        "neighbours": neighbours,
        "reasons": reasons,
    }
    environment.filters.update(filters)
    return environment


def _millions(number: int) -> str:
    """A number of parameters for people."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= limit:
            return f"{number / limit:,.1f} {unit}"
    return str(number)
