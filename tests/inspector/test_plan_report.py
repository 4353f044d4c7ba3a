"""The report of a plan: the summary, then one row per kind of family and worker, then findings."""

from __future__ import annotations

from typing import Any

from sdp_compile.inspector.render.summary import summary_head
from sdp_compile.inspector.terminal import text
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


def words(plan: Plan) -> str:
    """The report of a plan, with its line breaks taken out."""
    return " ".join(str(plan.report()).split())


def test_it_says_how_gradients_travel_and_what_losses_cost_nothing() -> None:
    report = words(tiny(workers=512, node_size=8).plan)
    assert "Plan · 512 workers · 64 nodes" in report
    assert "gradients travel in 3 levels: 8 workers of a node, 8 nodes of a class, 8 classes" in report
    assert "any 255 workers, or any 31 of the 64 nodes, can be lost without losing a unit" in report
    assert "spectral gap 0.2" in report and "the most loaded worker has 1.0" in report
    report = words(tiny(workers=32, node_size=16).plan)
    assert "3 levels: 2 workers of a class in a node, 8 classes in a node, 2 nodes of a class" in report
    report = words(tiny().plan)
    assert "1 level: 4 workers" in report and "any 1 worker can be lost" in report and "node" not in report
    assert "2 levels: 2 workers of a node, 4 nodes" in words(tiny(workers=8, node_size=2, coverage=1.0).plan)
    assert "some units have a single owner" in words(tiny(replicas=1).plan)


def findings(**fields: Any) -> list[tuple[str, str]]:
    """What the report finds about nodes and levels."""
    found = tiny(**fields).plan.diagnose()
    return [(one.severity, one.text) for one in found if "node" in one.text or "exchange among" in one.text]


def test_a_node_whose_loss_loses_units_is_a_warning() -> None:
    """Eight slots do not fit nodes of four; the advice is followed, and nothing is left to say."""
    (severity, text), (second, note) = findings(workers=8, node_size=4)
    assert severity == "warning" and text.startswith("All owners of some units are on one node")
    assert second == "note" and note.startswith("No step of a reduction stays inside a node")
    assert text.endswith("Try slots=4.") and note.endswith("Try slots=4.")
    assert not findings(workers=8, node_size=4, slots=4)
    plan = tiny(workers=8, node_size=4, slots=4).plan
    assert plan.redundancy().nodes == 2 and plan.levels[0].in_node

    ((severity, text),) = findings(workers=64, node_size=8, coverage=0.125)
    assert severity == "warning" and text.endswith("Raise the coverage, so that each unit has owners on two nodes.")
    assert not findings(workers=64, node_size=8, coverage=0.25)
    assert not findings(workers=64, node_size=8)
    assert not findings(workers=8, node_size=1) and not findings(workers=8)
