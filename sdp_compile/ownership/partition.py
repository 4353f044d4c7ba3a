"""The answer of a policy, and the checks that it must pass before it becomes a plan."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from sdp_compile.errors import PolicyError, did_you_mean
from sdp_compile.ownership.elements import ElementOwners
from sdp_compile.ownership.owners import OwnerSet, Ownership
from sdp_compile.structure.families import Family, Structure
from sdp_compile.structure.layout import families, restrict


class Partition(dict[str, Ownership]):
    """The owners of each unit of each family that is cut, by the family's name.

    A custom policy may return any mapping from family names to the owners of each unit instead.

    Args:
        owners: The ownership of each family.
        notes: Remarks for the report.
    """

    def __init__(self, owners: Mapping[str, Ownership] | None = None, notes: Iterable[str] = ()) -> None:
        super().__init__(owners or {})
        self.notes = tuple(notes)


def checked(structure: Structure, partition: object, workers: int, parameters: Collection[str]) -> Partition:
    """Returns a policy's partition in canonical form, without the families that all workers own whole.

    Args:
        structure: The structure that was partitioned.
        partition: What the policy returned.
        workers: The number of workers.
        parameters: The tensors whose every element needs an owner.

    Raises:
        PolicyError: The partition is not valid; the error names the family or parameter.
    """
    if not isinstance(partition, Mapping):
        raise PolicyError(
            f"partition() must return a mapping from family names to the owners of each unit, got "
            f"{type(partition).__name__}."
        )
    result = Partition(notes=getattr(partition, "notes", ()))
    everyone = tuple(range(workers))
    workers_with_units: dict[Ownership, set[int]] = {}
    for name, owners in partition.items():
        family = structure.by_name.get(name)
        if family is None:
            raise PolicyError(
                f"The partition names the family {name!r}, which the model does not have."
                f"{did_you_mean(str(name), structure.by_name)}"
            )
        ownership = _canonical(family, owners, workers)
        if ownership not in workers_with_units:
            workers_with_units[ownership] = set().union(*ownership.sets)
        if len(workers_with_units[ownership]) < workers:
            idle = next(worker for worker in everyone if worker not in workers_with_units[ownership])
            raise PolicyError(
                f"{_called(family)}: worker {idle} owns none of the {family.units} units, and every worker needs at "
                "least one. Raise the coverage, or use fewer workers."
            )
        if ownership.replicas < workers:
            result[name] = ownership
    _check_levels(structure, result)
    _check_elements(structure, result, workers, parameters)
    return result


def _called(family: Family) -> str:
    where = f" in {family.module_path}" if family.module_path and family.module_path != family.name else ""
    return f"The {family.kind} family {family.name!r}{where}"


def _canonical(family: Family, owners: Sequence[Collection[int]], workers: int) -> Ownership:
    try:
        ownership = Ownership.of(owners)
    except TypeError as error:
        raise PolicyError(
            f"{_called(family)}: the owners of each unit must be a collection of worker numbers, "
            f"got {owners!r:.80} ({error})."
        ) from error
    if len(ownership) != family.units:
        raise PolicyError(
            f"{_called(family)} has {family.units} units, but the partition gives owners for {len(ownership)}."
        )
    for number, members in enumerate(ownership.sets):
        if members and 0 <= members[0] and members[-1] < workers:
            continue
        unit = int(np.argmax(ownership.labels == number))
        if not members:
            raise PolicyError(f"{_called(family)}: unit {unit} has no owner, so it would never be trained.")
        stranger = members[0] if members[0] < 0 else members[-1]
        raise PolicyError(
            f"{_called(family)}: unit {unit} is given to worker {stranger}, but the workers are 0 to {workers - 1}."
        )
    return ownership


def _check_levels(structure: Structure, partition: Partition) -> None:
    """Raises `PolicyError` if axes cut a tensor in a droppable block, or if two block families are cut."""
    blocks = [name for name in partition if structure.by_name[name].kind == "block"]
    if len(blocks) > 1:
        raise PolicyError(
            f"The partition uses the block families {blocks[0]!r} and {blocks[1]!r} together. Choose one of them."
        )
    members = structure.members.get(blocks[0], {}) if blocks else {}
    for tensor in members:
        for layout in structure.layouts.get(tensor, ()):
            for axis in families(restrict(layout, frozenset(partition))):
                raise PolicyError(
                    f"{tensor!r} is cut by the axis {axis!r} and is part of a block of {blocks[0]!r}. A parameter can "
                    "belong to families of one level only."
                )


def _check_elements(structure: Structure, partition: Partition, workers: int, parameters: Collection[str]) -> None:
    """Raises `PolicyError` if several cuts meet in one tensor and some of its elements have no owner."""
    elements: ElementOwners | None = None
    sound: set[tuple[object, ...]] = set()
    for tensor in parameters:
        cut = [restrict(layout, frozenset(partition)) for layout in structure.layouts.get(tensor, ())]
        crossing = [family for layout in cut for family in families(layout)]
        if len(crossing) < 2:
            continue
        elements = elements or ElementOwners(partition, workers)
        parts = [elements.parts(layout) for layout in cut]
        # Equal layers have equal intersections, so each combination of owner sets is checked once.
        signature = tuple(tuple(owners for owners, _ in part) for part in parts)
        if signature in sound:
            continue
        reachable: set[OwnerSet] = {elements.everyone}
        for part in parts:
            reachable = {elements.intersection(so_far, owners) for so_far in reachable for owners, _ in part}
        if () in reachable:
            named = " and ".join(repr(family) for family in dict.fromkeys(crossing))
            raise PolicyError(
                f"{tensor!r} is cut along {len(crossing)} axes ({named}), and some of its elements have no owner, "
                "because no worker owns all their units. Raise the replicas, or cut axes that do not meet "
                "(axes='disjoint')."
            )
        sound.add(signature)
