"""The view ``diff``: what the passes changed in a worker's program."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from sdp_compile.errors import PlanError, did_you_mean
from sdp_compile.inspector.graph import in_matching_modules
from sdp_compile.inspector.plain import View
from sdp_compile.inspector.repeats import Fold, folds
from sdp_compile.inspector.replay import Step, replay
from sdp_compile.inspector.rows import Listing, Row, listing, original_calls, outline
from sdp_compile.inspector.subject import Subject
from sdp_compile.ir.program import Mode
from sdp_compile.passes import Pass
from sdp_compile.planning.holdings import LoweringKind

Change = Literal["same", "insert", "remove", "change", "slice"]


@dataclass(frozen=True)
class DiffLine:
    """One row before and after the passes.

    ``slice`` means that the worker holds less of a tensor, ``change`` that an operator or argument differs. A row with
    the same call but a smaller shape, because its inputs are smaller, is the ``same``.
    """

    change: Change
    before: Row | None
    after: Row | None

    @property
    def row(self) -> Row:
        """The row after the passes, or the row before them if they removed it."""
        row = self.after or self.before
        assert row is not None
        return row


@dataclass(frozen=True)
class StepSummary:
    """How many nodes one pass found and left, and how many rows it inserted, removed, changed and sliced."""

    pass_: str
    nodes_before: int
    nodes_after: int
    inserted: int
    removed: int
    changed: int
    sliced: int


@dataclass(frozen=True)
class DiffView(View):
    """The changes from the captured to the rewritten program, or those of a single pass (``pass_``)."""

    model: str
    workers: int
    rank: int
    mode: Mode
    lowering: LoweringKind
    pass_: str | None
    module: str | None
    steps: tuple[StepSummary, ...]
    inserted: int
    removed: int
    changed: int
    sliced: int
    lines: tuple[DiffLine, ...]
    folds: tuple[Fold, ...]


def diff_view(
    subject: Subject,
    rank: int = 0,
    mode: Mode = "train",
    lowering: LoweringKind = "sliced",
    pass_name: str | None = None,
    module: str | None = None,
    passes: tuple[Pass, ...] = (),
) -> DiffView:
    """Compares a worker's program before and after its passes.

    Rows are compared by what they compute, so a pass that only renames a node changes nothing.

    Args:
        subject: The capture with its structure and plan.
        rank: The worker whose program is shown.
        mode: ``"train"`` or ``"eval"``.
        lowering: ``"sliced"`` or ``"masked"``.
        pass_name: Show this pass only; default: all passes together.
        module: Glob; keep only the lines of modules whose path matches.
        passes: The passes to run; default: the pipeline of ``lowering``.

    Raises:
        PlanError: If the rank, mode, lowering, pass or module does not exist.
    """
    steps = replay(subject, rank, mode, lowering, passes)
    names = [step.name for step in steps[1:]]
    if pass_name is not None and pass_name not in names:
        raise PlanError(
            f"The pipeline has no pass {pass_name!r}; its passes are {', '.join(names)}."
            f"{did_you_mean(pass_name, names)}"
        )
    original = original_calls(steps[0])
    last = len(names) if pass_name is None else 1 + names.index(pass_name)
    before, after = steps[0 if pass_name is None else last - 1], steps[last]
    lines = _compared(listing(subject, before, original, rank), listing(subject, after, original, rank))
    if module is not None:
        lines = in_matching_modules(lines, module, lambda line: line.row)
    counts = Counter(line.change for line in lines)
    return DiffView(
        model=subject.model,
        workers=subject.plan.workers,
        rank=rank,
        mode=mode,
        lowering=lowering,
        pass_=pass_name,
        module=module,
        steps=tuple(_summary(subject, *pair, original, rank) for pair in pairwise(steps)),
        inserted=counts["insert"],
        removed=counts["remove"],
        changed=counts["change"],
        sliced=counts["slice"],
        lines=tuple(lines),
        folds=folds([line.row for line in lines], [_mark(line) for line in lines]),
    )


def _summary(subject: Subject, before: Step, after: Step, original: Mapping[str, Any], rank: int) -> StepSummary:
    inserted = removed = changed = sliced = 0
    if after.program is not before.program:
        old, new = outline(subject, before, original, rank), outline(subject, after, original, rank)
        common = old.calls.keys() & new.calls.keys()
        inserted, removed = len(new.calls) - len(common), len(old.calls) - len(common)
        changed = sum(old.calls[name] != new.calls[name] for name in common)
        sliced = sum(old.shapes[name] != new.shapes[name] for name in old.shapes.keys() & new.shapes.keys())
    return StepSummary(
        after.name, len(before.program.graph.nodes), len(after.program.graph.nodes), inserted, removed, changed, sliced
    )


def _mark(line: DiffLine) -> Any:
    """What two lines must share, besides their rows, to be alike."""
    before = line.before
    return line.change, before and ("" if before.kind == "state" else before.target, before.shape)


def _compared(old: Listing, new: Listing) -> list[DiffLine]:
    computing = list(_merged(old, new))
    state = {
        name: _state_lines(old.state.get(name, ()), new.state.get(name, ())) for name in {**old.state, **new.state}
    }
    result: list[DiffLine] = []
    for line in computing:
        for row in (line.before, line.after):
            if row is not None and row.kind != "sync":
                result += (one for name in row.state for one in state.pop(name, ()))
        if line.row.kind == "output":
            result += (one for unused in state.values() for one in unused)
        result.append(line)
    return result


def _merged(old: Listing, new: Listing) -> Iterator[DiffLine]:
    """Merges the computing rows of both programs. Rows with the same name are the same node."""
    kept = _common_subsequence([row.name for row in old.computing], [row.name for row in new.computing])
    after = {row.name: row for row in new.computing}
    waiting = iter(new.computing)
    for row in old.computing:
        if row.name not in kept:
            yield DiffLine("remove", row, None)
            continue
        for other in waiting:
            if other.name == row.name:
                break
            yield DiffLine("insert", None, other)
        same = old.calls[row.name] == new.calls[row.name]
        yield DiffLine("same" if same else "change", row, after[row.name])
    yield from (DiffLine("insert", None, other) for other in waiting)


def _common_subsequence(old: Sequence[str], new: Sequence[str]) -> frozenset[str]:
    """The longest sequence of names that both hold in the same order. Names are unique on each side."""
    places: Mapping[str, int] = {name: place for place, name in enumerate(new)}
    ends: list[int] = []  # the smallest place at which an increasing sequence of each length ends
    lengths: list[tuple[str, int]] = []
    for name in old:
        if name in places:
            length = bisect_left(ends, places[name])
            ends[length:] = [places[name], *ends[length + 1 :]]
            lengths.append((name, length))
    kept: list[str] = []
    wanted = len(ends) - 1
    for name, length in reversed(lengths):
        if length == wanted and (not kept or places[name] < places[kept[-1]]):
            kept.append(name)
            wanted -= 1
    return frozenset(kept)


def _state_lines(old: Sequence[Row], new: Sequence[Row]) -> list[DiffLine]:
    """The lines of a state tensor and of the mask through which it may be read."""
    before, after = {row.name: row for row in old}, {row.name: row for row in new}
    lines = []
    for name in {**before, **after}:
        one, other = before.get(name), after.get(name)
        if one is None or other is None:
            lines.append(DiffLine("remove" if other is None else "insert", one, other))
        else:
            lines.append(DiffLine("same" if one.shape == other.shape else "slice", one, other))
    return lines
