"""The report of a plan: the summary, then one row per kind of family and worker, then findings."""

from __future__ import annotations

from sdp_compile.inspector.render.summary import summary_head
from sdp_compile.inspector.terminal import text
from sdp_compile.planning.finding import Finding
from sdp_compile.planning.plan import Plan
from tests.inspector.subjects import tiny


def test_the_summary_is_the_head_of_the_report() -> None:
    plan = tiny().plan
    head = text(summary_head(plan))
    assert str(plan.report()).startswith(head)
    assert text(plan).startswith(head)


def test_alike_families_and_workers_share_a_row() -> None:
    plan = tiny(workers=1000).plan
    report = str(plan.report())
    assert report.count("layers.0.mlp.0.weight[0]  x 3") == 1 and "layers.1.mlp.0" not in report
    assert len(plan.worker_classes()) == 8 and "0-999 (1000)" in report


def test_many_owner_groups_are_a_note() -> None:
    """The runtime switches to all-to-alls by itself, so there is nothing to do."""

    def group_findings(plan: Plan) -> list[Finding]:
        return [finding for finding in plan.diagnose() if "owner groups" in finding.text]

    (finding,) = group_findings(tiny(workers=32, coverage=0.75, slots=32).plan)
    assert finding.severity == "note" and "all-to-alls" in finding.text
    assert not group_findings(tiny(workers=32).plan)
