"""The pipeline once more, pass by pass: passes are pure, so nothing else is needed to see what each of them does."""

from __future__ import annotations

from dataclasses import dataclass

from sdp_compile.errors import PlanError
from sdp_compile.inspector.subject import Subject
from sdp_compile.ir.program import Mode, Program
from sdp_compile.passes import Lowering, LoweringKind, Pass, SliceParameters, Verify, pipeline
from sdp_compile.passes.mask_parameters import mask_tensors, with_masks
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES
from sdp_compile.planning.unowned import with_rests


@dataclass(frozen=True, eq=False)
class Step:
    """The program that one pass left; the first step, without a pass, is the captured program.

    ``sliced`` says whether tensors have the worker's shapes by now.
    """

    name: str
    program: Program
    sliced: bool = False


def replay(
    subject: Subject,
    rank: int = 0,
    mode: Mode = "train",
    lowering: LoweringKind = "sliced",
    passes: tuple[Pass, ...] = (),
) -> list[Step]:
    """The captured program of ``mode``, and what ``rank`` makes of it by each of ``passes`` (default: all)."""
    check(subject, rank, mode, lowering)
    capture = subject.capture
    if lowering == "masked":
        capture = with_masks(capture, mask_tensors(subject.plan, rank))
    else:
        capture = with_rests(capture, subject.plan, rank)
    context = Lowering(capture, subject.structure, subject.plan, rank, lowering, subject.blocks)
    steps = [Step("", capture.programs[mode])]
    for step in passes or pipeline(lowering, DEFAULT_BUCKET_BYTES, subject.plan.masking):
        before = steps[-1]
        sliced = before.sliced or isinstance(step, SliceParameters)
        known = subject.verified and isinstance(step, Verify)  # it changes nothing, and takes most of the time
        steps.append(Step(step.name, before.program if known else step.run(before.program, context), sliced))
    return steps


def check(subject: Subject, rank: int, mode: str, lowering: str) -> None:
    """Raises `PlanError` for a rank, mode or lowering that does not exist."""
    workers = subject.plan.workers
    if not 0 <= rank < workers:
        raise PlanError(f"rank={rank}: there is no such worker; the plan has workers 0 to {workers - 1}.")
    if mode not in subject.capture.programs:
        raise PlanError(f"mode={mode!r}: the modes of a model are {' and '.join(subject.capture.programs)}.")
    if lowering not in ("sliced", "masked"):
        raise PlanError(f"lowering={lowering!r} does not exist; it is 'sliced' (the default) or 'masked'.")
