"""What the page shows of a schedule: its phases, and a map of the owners in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sdp_compile.inspector.owners import owners_view
from sdp_compile.inspector.phases import PhasesView, planned, view_of
from sdp_compile.report_page.owner_map import OwnerMap

if TYPE_CHECKING:
    from sdp_compile.inspector.subject import Subject
    from sdp_compile.planning.phases import PlannedPart
    from sdp_compile.policies import Schedule


@dataclass(frozen=True)
class NamedMap:
    """The owner map of a plan, and what it is the plan of; ``is_shown`` marks the page's own plan."""

    name: str
    map: OwnerMap
    is_shown: bool


def phases_of(subject: Subject, schedule: Schedule | None) -> tuple[PhasesView | None, tuple[NamedMap, ...]]:
    """Returns the phases of a schedule and the owner map of each of its plans; without one, that of the page's plan.

    Args:
        subject: The model and the plan of the page.
        schedule: The schedule; None for a page of one plan.
    """
    if schedule is None:
        return None, (_own(subject),)
    parts = planned(subject, schedule)
    view = view_of(subject, schedule, parts)
    return view, _maps(subject, parts, view)


def _maps(subject: Subject, parts: Sequence[PlannedPart], view: PhasesView) -> tuple[NamedMap, ...]:
    maps: dict[str, NamedMap] = {}
    for one, row in zip(parts, view.parts, strict=True):
        digest = one.plan.digest
        if digest not in maps:
            own = OwnerMap(owners_view(replace(subject, plan=one.plan, lowered=None)))
            maps[digest] = NamedMap(f"{row.phase}: {row.words}", own, digest == subject.plan.digest)
    others = tuple(maps.values())
    # A model in the middle of training can have owners that were drawn again more often.
    return others if subject.plan.digest in maps else (_own(subject), *others)


def _own(subject: Subject) -> NamedMap:
    return NamedMap("this page's plan", OwnerMap(owners_view(subject)), True)
