"""Sums up a capture, its structure and its plan as fields of a `CheckResult`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sdp_compile.checking.verdict import Comparison, CutFamily, FrozenReason
from sdp_compile.ir.program import Capture
from sdp_compile.planning.plan import Plan
from sdp_compile.structure.families import Frozen, Structure


def of_capture(captured: Capture) -> dict[str, Any]:
    """Returns the size of the model and the notes of capture."""
    parameters = sum(tensor.numel for tensor in captured.state.values() if tensor.kind == "parameter")
    return {"captured": True, "parameters": parameters, "notes": captured.notes}


def of_structure(structure: Structure) -> dict[str, Any]:
    """Returns the number of axes and blocks, and what is frozen."""
    blocks = max((family.units for family in structure.blocks), default=0)
    return {"axes": len(structure.axes), "blocks": blocks, "frozen": reasons(structure.frozen)}


def of_plan(plan: Plan, ranks: Iterable[int]) -> dict[str, Any]:
    """Returns what is cut, the coverage, and what each of ``ranks`` keeps."""
    dense = plan.memory().parameters or 1
    cut = plan.coverage().cut
    total = shared = 0
    for name, tensor in plan.state.items():
        for piece in plan.pieces(name) if tensor.kind == "parameter" else ():
            total += piece.numel
            shared += piece.numel if len(piece.owners) == plan.workers else 0
    families = [
        CutFamily(f.name, f.kind, f.module_path, f.units, f.replicas, sum(f.unit_bytes) / dense) for f in plan.families
    ]
    return {
        "axes_cut": sum(family.kind == "axis" for family in plan.families),
        "blocks_cut": sum(family.units for family in plan.families if family.kind == "block"),
        "share_cut": (total - shared) / total if total else 0.0,
        "coverage": None if cut is None else cut.mean / plan.workers,
        "kept": tuple(plan.memory(rank).parameters / dense for rank in ranks),
        "families": tuple(sorted(families, key=lambda family: -family.share)),
        "notes": (*plan.notes, *(str(finding) for finding in plan.diagnose())),
    }


def of_comparisons(comparisons: Iterable[Comparison], seed: int) -> dict[str, Any]:
    """Returns what the comparisons are about."""
    done = list(comparisons)
    return {
        "modes": sorted({one.mode for one in done}, reverse=True),
        "calls": list(dict.fromkeys(one.trial for one in done)),
        "dtype": "float64",
        "seed": seed,
    }


def reasons(frozen: Iterable[Frozen]) -> tuple[FrozenReason, ...]:
    """Groups frozen dimensions by reason, operator and source line, the most frequent first."""
    groups: dict[tuple[str, str, str], list[Frozen]] = {}
    for dimension in frozen:
        groups.setdefault((dimension.reason, dimension.operator, dimension.source), []).append(dimension)
    return tuple(
        FrozenReason(
            reason, operator, source, members[0].module_path, len(members), members[0].parameter, members[0].dim
        )
        for (reason, operator, source), members in sorted(groups.items(), key=lambda item: -len(item[1]))
    )
