"""The families that a plan cuts, and the structure as it looks to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdp_compile.errors import StructureError
from sdp_compile.structure.layout import Layout, Leaf, restrict
from sdp_compile.structure.model import FamilyKind, FlopTerm, Structure

if TYPE_CHECKING:  # policies come this way too, and a policy that cannot be is refused before torch is loaded
    from sdp_compile.program import StateTensor


@dataclass(frozen=True)
class CutFamily:
    """A family that the plan partitions. Each of its units has ``replicas`` owners (at least, with unequal workers)."""

    name: str
    kind: FamilyKind
    units: int
    unit_bytes: tuple[int, ...]
    unit_flops: tuple[float, ...]
    module_path: str
    depth: int
    parameters: tuple[str, ...]
    unit_names: tuple[str, ...]
    replicas: int


@dataclass(frozen=True)
class Rescale:
    """The training factors N/|O(u)| of one family on one rank, for its owned ``units`` in ascending order."""

    family: str
    kind: FamilyKind
    units: tuple[int, ...]
    factors: tuple[float, ...]


def restricted_layouts(name: str, tensor: StateTensor, structure: Structure, cut: frozenset[str]) -> tuple[Layout, ...]:
    """The layouts of a tensor, with every family that is not cut made anonymous."""
    layouts = structure.layouts.get(name)
    if layouts is None:
        return tuple(Leaf(size) for size in tensor.shape)
    if tuple(layout.size for layout in layouts) != tensor.shape:
        raise StructureError(f"The analysis found {name!r} to have {layouts}, its shape is {tensor.shape}.")
    return tuple(restrict(layout, cut) for layout in layouts)


def restricted_work(work: Iterable[FlopTerm], cut: frozenset[str]) -> tuple[FlopTerm, ...]:
    """The same FLOPs, one term for each combination of families in use."""
    totals: dict[tuple[str, ...], float] = {}
    for term in work:
        axes = tuple(sorted(axis for axis in term.axes if axis in cut))
        totals[axes] = totals.get(axes, 0.0) + term.flops
    return tuple(FlopTerm(flops, axes) for axes, flops in totals.items())
