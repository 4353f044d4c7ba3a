"""What a plan reports and what it warns of."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from sdp_compile.formatting import size
from sdp_compile.policies import NeuronPolicy
from tests.planning.plans import Given, plan_for
from tests.synthetic import attention, nothing


def test_reports_and_findings():
    plan = plan_for(attention(), NeuronPolicy(), 4)
    text = str(plan.report())
    for part in (
        "heads",
        "attention.qkv",
        "owners per cut element",
        size(plan.memory(0).parameters),
        "value: left whole",
    ):
        assert part in text
    console = Console(file=StringIO(), width=100)
    console.print(plan.report())
    assert "heads" in console.file.getvalue()
    frozen = plan_for(nothing(), NeuronPolicy(coverage=1.0), 2)
    assert "it is a graph output" in str(frozen.report())
    assert [str(finding) for finding in frozen.diagnose()] == [
        "note: Nothing is cut: every worker trains the whole model."
    ]
    apart = plan_for(attention(), Given(owners={"heads": [(0, 1), (0, 1), (2, 3), (2, 3)]}), 4)
    assert apart.spectral_gap() == 0 and any("share no cut parameter" in finding.text for finding in apart.diagnose())
    uneven = plan_for(attention(), Given(owners={"heads": [(0, 1), (0, 1), (0, 1), (0, 2, 3)]}), 4)
    texts = [finding.text for finding in uneven.diagnose()]
    assert any("times the mean memory" in text for text in texts) and any(
        "all of the dense model's" in text for text in texts
    )
