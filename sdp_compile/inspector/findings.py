"""What stands out in a plan and is worth knowing before training with it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sdp_compile.inspector.plan_figures import dense_bytes, parameter_bytes, shared_share
from sdp_compile.inspector.travel import travel_findings
from sdp_compile.planning.finding import Finding
from sdp_compile.planning.plan import Plan


def diagnose(plan: Plan) -> list[Finding]:
    """Returns all findings of a plan, warnings first."""
    return sorted(_findings(plan), key=lambda finding: finding.severity != "warning")


def _findings(plan: Plan) -> Iterator[Finding]:
    if plan.workers == 1 or not plan.families:
        yield Finding("note", "Nothing is cut: every worker trains the whole model.")
        return
    shared = shared_share(plan)
    if shared > 0.5:
        yield Finding(
            "warning",
            f"All workers share {shared:.0%} of the parameter bytes, which limits what partitioning can save; "
            "see what is not cut and why.",
        )
    for what, loads, dense in (
        ("memory", parameter_bytes(plan), dense_bytes(plan)),
        ("FLOPs", np.array([plan.flops(rank) for rank in range(plan.workers)]), plan.flops()),
    ):
        if loads.max() > 1.1 * loads.mean() > 0:
            yield Finding(
                "warning",
                f"The most loaded worker has {loads.max() / loads.mean():.2f} times the mean {what}, and all others "
                "wait for it. Try design='balanced' or another coverage.",
            )
        computes_everything = what == "FLOPs" and plan.masking == "backward"
        if dense and loads.max() >= dense and not computes_everything:
            yield Finding("warning", f"At least one worker has all of the dense model's {what} and saves nothing.")
    coverage = plan.coverage()
    if coverage.cut is not None and coverage.cut.min == 1:
        yield Finding("note", "Some parameters have a single owner: if that worker is lost, so is their training.")
    elif plan.spectral_gap() < 1e-9:
        yield Finding(
            "warning",
            "The workers fall into groups that share no cut parameter, so each group trains its cut parameters on its "
            "own data only. Choose another number of slots or another design.",
        )
    yield from travel_findings(plan)
    used = set(plan.order)
    unused = [name for name, tensor in plan.state.items() if tensor.kind == "parameter" and name not in used]
    if unused:
        yield Finding(
            "note",
            f"{len(unused)} parameters, such as {unused[0]!r}, are never used in the forward pass and get no gradient.",
        )
