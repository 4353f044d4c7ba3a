"""The families that a plan cuts, and the layouts of all tensors in terms of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from sdp_compile.errors import StructureError
from sdp_compile.structure.families import Family, FamilyKind, FlopTerm, Structure
from sdp_compile.structure.layout import Layout, Leaf, restrict

if TYPE_CHECKING:  # policies import this module, and an invalid policy is refused before torch is loaded
    from sdp_compile.ir.program import StateTensor


Masking = Literal["forward", "backward"]
"""Whether a worker computes with its subnetwork, or with the full model and keeps the gradients that it owns."""


@dataclass(frozen=True)
class CutFamily(Family):
    """A family that the plan partitions.

    Attributes:
        replicas: The smallest number of owners of a unit.
    """

    replicas: int = 1

    @classmethod
    def of(cls, family: Family, replicas: int) -> CutFamily:
        """Returns ``family`` with the number of owners that the plan gives each of its units."""
        return cls(**{item.name: getattr(family, item.name) for item in fields(family)}, replicas=replicas)


@dataclass(frozen=True)
class Rescale:
    """The training factors N/|O(u)| of one family on one rank, for its owned ``units`` in ascending order."""

    family: str
    kind: FamilyKind
    units: tuple[int, ...]
    factors: tuple[float, ...]


def layouts_of_state(
    state: Mapping[str, StateTensor], structure: Structure, cut: frozenset[str], masking: Masking
) -> dict[str, tuple[Layout, ...]]:
    """Returns the layouts of all tensors, without the names of families that are not cut.

    Under backward masking only parameters have owners: each worker computes the full model, with all of its buffers.

    Args:
        state: The full tensors by name.
        structure: The structure of the model.
        cut: The names of the families that are cut.
        masking: The masking of the plan.

    Raises:
        StructureError: If a layout does not have the shape of its tensor.
    """
    uncut: frozenset[str] = frozenset()
    return {
        name: _restricted(name, tensor, structure, cut if masking == "forward" or tensor.kind == "parameter" else uncut)
        for name, tensor in state.items()
    }


def _restricted(name: str, tensor: StateTensor, structure: Structure, cut: frozenset[str]) -> tuple[Layout, ...]:
    layouts = structure.layouts.get(name)
    if layouts is None:
        return tuple(Leaf(size) for size in tensor.shape)
    if tuple(layout.size for layout in layouts) != tensor.shape:
        raise StructureError(f"The analysis gave {name!r} the layouts {layouts}, but its shape is {tensor.shape}.")
    return tuple(restrict(layout, cut) for layout in layouts)


def restricted_work(work: Iterable[FlopTerm], cut: frozenset[str]) -> tuple[FlopTerm, ...]:
    """Returns the same FLOPs with one term for each combination of families that are cut."""
    totals: dict[tuple[str, ...], float] = {}
    for term in work:
        axes = tuple(sorted(axis for axis in term.axes if axis in cut))
        totals[axes] = totals.get(axes, 0.0) + term.flops
    return tuple(FlopTerm(flops, axes) for axes, flops in totals.items())
