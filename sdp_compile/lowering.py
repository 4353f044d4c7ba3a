"""Lowering: turns an analysis and a plan into one worker's programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdp_compile.errors import LoweringError, PassError, SDPError
from sdp_compile.ir.program import Program
from sdp_compile.passes import DeadCode, Pass, PassContext, Verify, pipeline, reducing
from sdp_compile.planning.holdings import Holdings, LoweringKind, MaskedHoldings, holdings
from sdp_compile.planning.plan import Plan
from sdp_compile.structure.analysis import Analysis


@dataclass(frozen=True, eq=False)
class Step:
    """The program after one pass.

    Attributes:
        name: The name of the pass; empty for the program before all passes.
        program: The program.
        is_sliced: Whether activations have the worker's shapes.
    """

    name: str
    program: Program
    is_sliced: bool = False


@dataclass(frozen=True, eq=False)
class Lowered:
    """One worker's programs, and what they were made from.

    Attributes:
        analysis: The captured model with its axes and blocks.
        plan: Who owns what.
        holdings: Which tensors the worker holds, and where they lie in the full ones.
        passes: The passes that made the programs, in order.
        programs: The rewritten programs, by the keys of the captured ones.
    """

    analysis: Analysis
    plan: Plan
    holdings: Holdings
    passes: tuple[Pass, ...]
    programs: Mapping[str, Program]

    @property
    def rank(self) -> int:
        """The worker's number."""
        return self.holdings.rank

    @property
    def lowering(self) -> LoweringKind:
        """``"sliced"`` or ``"masked"``."""
        return self.holdings.lowering

    @property
    def context(self) -> PassContext:
        """The context that the passes were run with."""
        return PassContext(self.analysis, self.plan, self.holdings)

    def steps(self, key: str) -> list[Step]:
        """Returns a program before all passes and after each of them.

        Passes are pure, so they run again, except for the last one, which takes most of the time: its result is in
        ``programs``.
        """
        steps, context = [Step("", self.analysis.programs[key])], self.context
        for one in self.passes:
            before = steps[-1]
            program = self.programs[key] if one is self.passes[-1] else _run(one, before.program, context)
            is_sliced = before.is_sliced or (one.lowering == "sliced" and one.masking == "forward")
            steps.append(Step(one.name, program, is_sliced))
        return steps


def lower(
    analysis: Analysis,
    plan: Plan,
    rank: int,
    passes: Sequence[Pass] | None = None,
    keys: Sequence[str] | None = None,
) -> Lowered:
    """Rewrites the programs of a model for one worker.

    Args:
        analysis: The captured model with its axes and blocks.
        plan: Who owns what.
        rank: The worker, from 0 to ``plan.workers - 1``.
        passes: The passes to run; by default `sdp_compile.passes.pipeline` for the plan's masking.
        keys: The programs to lower; by default all that were captured.

    Raises:
        PassError: If ``passes`` do not fit together, or do not fit the plan's masking.
        LoweringError: If a pass fails or leaves an invalid graph; the error names the pass.
    """
    passes = pipeline(masking=plan.masking) if passes is None else tuple(passes)
    reduces = reducing(passes)
    if reduces.masking != plan.masking:
        raise PassError(
            f"The pass {reduces.name!r} is for masking={reduces.masking!r}, but the policy has "
            f"masking={plan.masking!r}. Use a pipeline for the policy's masking."
        )
    assert reduces.lowering is not None
    context = PassContext(analysis, plan, holdings(reduces.lowering, plan, rank))
    programs = {key: _lowered(analysis.programs[key], context, passes) for key in keys or analysis.programs}
    return Lowered(analysis, plan, context.holdings, passes, programs)


def _lowered(program: Program, context: PassContext, passes: tuple[Pass, ...]) -> Program:
    original = program
    for number, one in enumerate(passes):
        try:
            program = _run(one, program, context)
        except LoweringError as error:
            culprit = _culprit(original, context, passes[:number])
            if culprit is None:
                raise
            raise LoweringError(f"Pass {culprit!r} left a wrong graph: {error}") from error
    return program


def _run(one: Pass, program: Program, context: PassContext) -> Program:
    """Returns the program that a pass makes of another; errors name the pass."""
    try:
        result = one.run(program, context)
    except SDPError as error:
        if isinstance(one, Verify):
            raise
        raise LoweringError(f"Pass {one.name!r}: {error}") from error
    except Exception as error:
        raise LoweringError(f"Pass {one.name!r} failed with {type(error).__name__}: {error}") from error
    if not isinstance(result, Program):
        raise LoweringError(f"Pass {one.name!r} must return a Program, got {type(result).__name__}.")
    try:
        result.graph.lint()
    except Exception as error:
        raise LoweringError(f"Pass {one.name!r} left an invalid graph: {error}") from error
    return result


def _culprit(program: Program, context: PassContext, passes: tuple[Pass, ...]) -> str | None:
    """Returns the name of the first pass after which `Verify` fails; None if there is none.

    Until parameters are reduced, the graph must run with the full ones. The passes before that run with full holdings
    here, since what they insert may depend on them, such as the factors of `Rescale`.

    Args:
        program: The program before all passes.
        context: The worker.
        passes: The passes that ran without an error.
    """
    full = PassContext(context.analysis, context.plan, MaskedHoldings(context.plan, context.rank))
    if not _is_right(program, full, marks=False):
        return None
    reducer = next((number for number, one in enumerate(passes) if one.lowering is not None), len(passes))
    for told, checked in ((full, range(reducer)), (context, range(reducer, len(passes)))):
        result, marks = program, False
        for number, one in enumerate(passes[: checked.stop]):
            try:
                result = one.run(result, told)
            except Exception:  # it need not run with full holdings
                break
            marks = marks or one.name == "sync_gradients"
            if number in checked and not _is_right(result, told, marks):
                return one.name
    return None


def _is_right(program: Program, context: PassContext, marks: bool) -> bool:
    """Returns whether a program passes `Verify` once dead code is removed."""
    try:
        Verify(marks=marks).run(DeadCode().run(program, context), context)
    except Exception:  # a wrong graph may raise anything, such as a KeyError for a tensor that does not exist
        return False
    return True
