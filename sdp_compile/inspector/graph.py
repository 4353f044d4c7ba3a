"""The view ``graph``: a worker's rewritten graph, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sdp_compile.errors import PlanError, did_you_mean
from sdp_compile.inspector.plain import View
from sdp_compile.inspector.repeats import Fold, folds
from sdp_compile.inspector.replay import replay
from sdp_compile.inspector.rows import Row, listing, original_calls
from sdp_compile.inspector.subject import Subject
from sdp_compile.ir.program import Mode
from sdp_compile.passes import Pass
from sdp_compile.planning.holdings import LoweringKind


@dataclass(frozen=True)
class GraphView(View):
    """The program that a worker runs. ``nodes`` counts all nodes of the graph, ``counts`` the rows of each kind.

    ``edges`` hold (from, to), positions of rows. ``folds`` are the stretches that repeat an earlier layer.
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
    """The rewritten graph of one rank; ``module``, a glob, narrows it to the modules whose path matches.

    ``passes`` are those that a module was compiled with; default: the pipeline of ``lowering``.
    """
    steps = replay(subject, rank, mode, lowering, passes)
    listed = listing(subject, steps[-1], original_calls(steps[0]), rank)
    rows = narrowed(tuple(listed.rows()), module)
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


def narrowed(rows: tuple[Row, ...], module: str | None) -> tuple[Row, ...]:
    """The rows of the modules whose path matches a glob. Raises `PlanError` where none does."""
    if module is None:
        return rows
    found = tuple(row for row in rows if in_module(row, module))
    if not found:
        raise no_such_module(module, rows)
    return found


def in_module(row: Row, module: str) -> bool:
    """Whether a row's module, or one around it, matches a glob."""
    parts = row.module.split(".")
    return any(fnmatchcase(".".join(parts[:count]), module) for count in range(1, len(parts) + 1))


def no_such_module(module: str, rows: Sequence[Row]) -> PlanError:
    """The error for a glob that matches none of the rows' modules."""
    known = list(dict.fromkeys(row.module for row in rows if row.module))
    some = ", ".join(known[:4]) + (", ..." if len(known) > 4 else "")
    hint = f" {did_you_mean(module, known)}" if known else ""
    return PlanError(f"module={module!r} matches no module that computes in this graph; there are {some}.{hint}")
