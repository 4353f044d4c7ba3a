"""The view ``graph``: the rewritten graph of a worker, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

from sdp_compile.errors import PlanError, did_you_mean
from sdp_compile.inspector.plain import View
from sdp_compile.inspector.repeats import Fold, folds
from sdp_compile.inspector.replay import replay
from sdp_compile.inspector.rows import Row, listing, original_calls
from sdp_compile.inspector.subject import Subject
from sdp_compile.ir.program import Mode
from sdp_compile.passes import Pass
from sdp_compile.planning.holdings import LoweringKind

Item = TypeVar("Item")


@dataclass(frozen=True)
class GraphView(View):
    """The program that a worker runs.

    Attributes:
        nodes: Number of nodes in the whole graph.
        counts: Number of shown rows of each kind.
        folds: The stretches of rows that repeat an earlier layer.
        edges: Pairs (from, to) of row positions.
    """

    model: str
    workers: int
    rank: int
    mode: Mode
    lowering: LoweringKind
    module: str | None
    nodes: int
    counts: Mapping[str, int]
    rows: tuple[Row, ...]
    folds: tuple[Fold, ...]
    edges: tuple[tuple[int, int], ...]


def graph_view(
    subject: Subject,
    rank: int = 0,
    mode: Mode = "train",
    lowering: LoweringKind = "sliced",
    module: str | None = None,
    passes: tuple[Pass, ...] = (),
) -> GraphView:
    """Returns the rewritten graph of one rank.

    Args:
        subject: The capture with its structure and plan.
        rank: The worker whose program is shown.
        mode: ``"train"`` or ``"eval"``.
        lowering: ``"sliced"`` or ``"masked"``.
        module: Glob; keep only the rows of modules whose path matches.
        passes: The passes to run; default: the pipeline of ``lowering``.

    Raises:
        PlanError: If the rank, mode, lowering or module does not exist.
    """
    steps = replay(subject, rank, mode, lowering, passes)
    listed = listing(subject, steps[-1], original_calls(steps[0]), rank)
    rows = tuple(listed.rows())
    if module is not None:
        rows = tuple(in_matching_modules(rows, module, lambda row: row))
    positions = {row.name: position for position, row in enumerate(rows)}
    return GraphView(
        model=subject.model,
        workers=subject.plan.workers,
        rank=rank,
        mode=mode,
        lowering=lowering,
        module=module,
        nodes=len(steps[-1].program.graph.nodes),
        counts=dict(Counter(row.kind for row in rows)),
        rows=rows,
        folds=folds(rows),
        edges=tuple(
            (positions[name], position) for position, row in enumerate(rows) for name in row.inputs if name in positions
        ),
    )


def in_matching_modules(items: Sequence[Item], module: str, row_of: Callable[[Item], Row]) -> list[Item]:
    """Returns the items whose row lies in a module whose path matches a glob.

    Raises:
        PlanError: If no module matches.
    """
    result = [item for item in items if _is_in_module(row_of(item), module)]
    if not result:
        known = list(dict.fromkeys(row_of(item).module for item in items if row_of(item).module))
        some = ", ".join(known[:4]) + (", ..." if len(known) > 4 else "")
        hint = f" {did_you_mean(module, known)}" if known else ""
        raise PlanError(f"module={module!r} matches no module of this graph. Its modules are {some}.{hint}")
    return result


def _is_in_module(row: Row, module: str) -> bool:
    """Whether the row's module, or a module around it, matches a glob."""
    parts = row.module.split(".")
    return any(fnmatchcase(".".join(parts[:count]), module) for count in range(1, len(parts) + 1))
