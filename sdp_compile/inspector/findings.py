"""What stands out in a plan: findings to act on, and the figures that they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from sdp_compile.ownership.owners import OwnerSet, OwnerSets
from sdp_compile.planning.finding import Finding
from sdp_compile.planning.plan import Plan

MOST_GROUPS = 16
"""Owner groups on one rank beyond which a collective per group and bucket costs more than it saves."""


def diagnose(plan: Plan) -> list[Finding]:
    """All findings of a plan, warnings first."""
    return sorted(_findings(plan), key=lambda finding: finding.severity != "warning")


def _findings(plan: Plan) -> Iterator[Finding]:
    if plan.workers == 1 or not plan.families:
        yield Finding("note", "Nothing is cut: every worker trains the whole model.")
        return
    shared = shared_share(plan)
    if shared > 0.5:
        yield Finding(
            "warning",
            f"{shared:.0%} of the parameter bytes are shared by all workers, which bounds what "
            "partitioning can save; the frozen dimensions say why.",
        )
    for what, loads, dense in (
        ("memory", parameter_bytes(plan), dense_bytes(plan)),
        ("FLOPs", np.array([plan.flops(rank) for rank in range(plan.workers)]), plan.flops()),
    ):
        if loads.max() > 1.1 * loads.mean() > 0:
            yield Finding(
                "warning",
                f"The most loaded worker has {loads.max() / loads.mean():.2f} of the mean {what}; "
                "all wait for it. Try design='balanced', or another coverage.",
            )
        expected = what == "FLOPs" and plan.masking == "backward"  # it computes the full model
        if dense and loads.max() >= dense and not expected:
            yield Finding("warning", f"Some worker has all of the dense model's {what}: nothing is saved there.")
    coverage = plan.coverage()
    if coverage.cut is not None and coverage.cut.min == 1:
        yield Finding("note", "Some parameters have one owner only: their training is lost if that worker is.")
    elif plan.spectral_gap() < 1e-9:
        yield Finding(
            "warning",
            "The workers fall into groups that share no cut parameter, so these train on the data "
            "of their group alone. Choose other slots, or another design.",
        )
    groups = int(per_worker(plan, dict.fromkeys(plan.groups, 1)).max())
    if groups > MOST_GROUPS:
        yield Finding(
            "warning", f"A worker is in {groups} owner groups, each with collectives of its own. Use fewer slots."
        )
    used = set(plan.order)
    unused = [name for name, tensor in plan.state.items() if tensor.kind == "parameter" and name not in used]
    if unused:
        yield Finding(
            "note", f"{len(unused)} parameters are never used in forward, such as {unused[0]!r}; they get no gradient."
        )


def _bytes_by_owners(plan: Plan) -> dict[OwnerSet, int]:
    known, nbytes = OwnerSets(), list[int]()
    for name, tensor in plan.state.items():
        for piece in plan.pieces(name) if tensor.kind == "parameter" else ():
            number = known.number(piece.owners)
            nbytes += [0] * (number + 1 - len(nbytes))
            nbytes[number] += piece.numel * tensor.dtype.itemsize
    return dict(zip(known.sets, nbytes, strict=True))


def per_worker(plan: Plan, figures: Mapping[OwnerSet, int]) -> NDArray[np.float64]:
    """Per worker the sum over the owner sets that it is in."""
    result = np.zeros(plan.workers)
    for owners, figure in figures.items():
        result[np.asarray(owners, dtype=np.int64)] += figure
    return result


def parameter_bytes(plan: Plan) -> NDArray[np.float64]:
    """The bytes of parameters that each worker owns."""
    return per_worker(plan, _bytes_by_owners(plan))


def dense_bytes(plan: Plan) -> int:
    """The bytes of all parameters."""
    return sum(tensor.nbytes for tensor in plan.state.values() if tensor.kind == "parameter")


def shared_share(plan: Plan) -> float:
    """The share of the parameter bytes that all workers own."""
    return _bytes_by_owners(plan).get(tuple(range(plan.workers)), 0) / max(1, dense_bytes(plan))
