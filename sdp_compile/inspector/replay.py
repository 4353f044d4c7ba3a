"""The passes of one worker, step by step."""

from __future__ import annotations

from sdp_compile.errors import PlanError
from sdp_compile.inspector.subject import Subject
from sdp_compile.ir.program import Mode
from sdp_compile.lowering import Step, lower
from sdp_compile.passes import Pass, pipeline
from sdp_compile.planning.holdings import LoweringKind

__all__ = ["Step", "check", "replay"]


def replay(
    subject: Subject,
    rank: int = 0,
    mode: Mode = "train",
    lowering: LoweringKind = "sliced",
    passes: tuple[Pass, ...] = (),
) -> list[Step]:
    """Returns the captured program of ``mode`` and what each of ``passes`` (default: all) makes of it on ``rank``."""
    check(subject, rank, mode, lowering)
    passes = passes or pipeline(lowering, subject.plan.masking)
    known = subject.lowered
    if known is None or (known.rank, known.passes) != (rank, passes):
        known = lower(subject.analysis, subject.plan, rank, passes, (mode,))
    return known.steps(mode)


def check(subject: Subject, rank: int, mode: str, lowering: str) -> None:
    """Raises `PlanError` for a rank, mode or lowering that does not exist."""
    subject.plan.checked_rank(rank)
    if mode not in subject.capture.programs:
        raise PlanError(f"mode must be {' or '.join(map(repr, subject.capture.programs))}, got {mode!r}.")
    if lowering not in ("sliced", "masked"):
        raise PlanError(f"lowering must be 'sliced' or 'masked', got {lowering!r}.")
