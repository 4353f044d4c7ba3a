"""The view ``owners``: which workers own which units of which family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdp_compile.inspector.plain import View
from sdp_compile.inspector.plan_figures import alike_families, dense_bytes, parameter_bytes
from sdp_compile.inspector.subject import Subject
from sdp_compile.ownership.owners import OwnerSet, OwnerSets, Ownership
from sdp_compile.planning.families import CutFamily
from sdp_compile.planning.plan import Plan


@dataclass(frozen=True)
class OwnersRange:
    """Number of owners per cut parameter element."""

    min: int
    mean: float
    max: int


@dataclass(frozen=True)
class WorkerClass:
    """Workers that own the same units; each holds ``parameters`` bytes of parameters, a ``share`` of the model."""

    workers: tuple[int, ...]
    parameters: int
    share: float


@dataclass(frozen=True)
class Run:
    """``units`` consecutive units from ``first`` on with the same owners (an index into the view's ``sets``)."""

    first: int
    units: int
    nbytes: int
    owners: int


@dataclass(frozen=True)
class OwnedFamily:
    """A family that the plan cuts.

    Attributes:
        owners: Smallest and largest number of owners of a unit.
        owned: Number of units that a worker of each class owns.
        loads: Share of the family's bytes that a worker of each class owns.
        runs: The owners of all units; empty if ``like`` is set.
        like: Name of an earlier family with the same units, bytes and owners.
    """

    name: str
    kind: str
    module: str
    units: int
    nbytes: int
    owners: tuple[int, int]
    owned: tuple[int, ...]
    loads: tuple[float, ...]
    runs: tuple[Run, ...]
    unit_names: tuple[str, ...]
    like: str | None


@dataclass(frozen=True)
class OwnersView(View):
    """Who owns what. ``shared`` is the share of the parameter bytes that no family cuts."""

    model: str
    workers: int
    digest: str
    coverage: OwnersRange | None
    shared: float
    sets: tuple[OwnerSet, ...]
    classes: tuple[WorkerClass, ...]
    families: tuple[OwnedFamily, ...]


def owners_view(subject: Subject) -> OwnersView:
    """Returns the owners of all units, and what each class of workers owns."""
    plan = subject.plan
    classes = plan.worker_classes()
    representatives = [members[0] for members in classes]
    held, dense = parameter_bytes(plan), dense_bytes(plan)
    known = OwnerSets()
    like = {family.name: first.name for first, *others in alike_families(plan) for family in others}
    families = [_owned(plan, family, representatives, known, like.get(family.name)) for family in plan.families]
    cut = plan.coverage().cut
    shared = sum(plan.state[name].nbytes for name in plan.state if _is_shared(plan, name))
    return OwnersView(
        model=subject.model,
        workers=plan.workers,
        digest=plan.digest,
        coverage=None if cut is None else OwnersRange(cut.min, cut.mean, cut.max),
        shared=shared / max(dense, 1),
        sets=tuple(known.sets),
        classes=tuple(
            WorkerClass(tuple(members), int(held[members[0]]), float(held[members[0]]) / max(dense, 1))
            for members in classes
        ),
        families=tuple(families),
    )


def _is_shared(plan: Plan, name: str) -> bool:
    return plan.state[name].kind == "parameter" and not plan.is_cut(name)


def _owned(
    plan: Plan, family: CutFamily, representatives: list[int], known: OwnerSets, like: str | None
) -> OwnedFamily:
    ownership = plan.owners(family)
    total = sum(family.unit_bytes)
    units = ownership.loads(np.ones(family.units), plan.workers)[representatives]
    loads = ownership.loads(family.unit_bytes, plan.workers)[representatives] / max(total, 1)
    counts = [len(owners) for owners in ownership.sets]
    return OwnedFamily(
        name=family.name,
        kind=family.kind,
        module=family.module_path,
        units=family.units,
        nbytes=total,
        owners=(min(counts), max(counts)),
        owned=tuple(int(number) for number in units),
        loads=tuple(float(share) for share in loads),
        runs=() if like is not None else _runs(family, ownership, known),
        unit_names=family.unit_names,
        like=like,
    )


def _runs(family: CutFamily, ownership: Ownership, known: OwnerSets) -> tuple[Run, ...]:
    until = np.concatenate([[0], np.cumsum(np.asarray(family.unit_bytes, dtype=np.int64))])
    result, first = [], 0
    for units, owners in ownership.runs:
        result.append(Run(first, units, int(until[first + units] - until[first]), known.number(owners)))
        first += units
    return tuple(result)
