"""What analysis finds in a model: families that a policy may partition, and where each of them lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sdp_compile.structure.layout import Layout

FamilyKind = Literal["axis", "block"]


@dataclass(frozen=True)
class Family:
    """Units that are partitioned together: one axis, or the blocks of the model.

    ``unit_bytes`` and ``unit_flops`` hold one figure per unit: bytes of the parameters that run through it, and forward
    FLOPs at the captured input size. ``parameters`` are canonical names. ``depth`` counts the model's layers from the
    input. ``outer`` is 0 for an axis that is outermost in every dimension where it lies, and grows inwards.
    """

    name: str
    kind: FamilyKind
    units: int
    unit_bytes: tuple[int, ...]
    unit_flops: tuple[float, ...]
    module_path: str
    depth: int
    parameters: tuple[str, ...]
    outer: int = 0
    unit_names: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters that run through all units."""
        return sum(self.unit_bytes)


@dataclass(frozen=True)
class Frozen:
    """Why a parameter dimension is never cut: the operator that needs all of it, and the user's line."""

    parameter: str
    dim: int
    size: int
    reason: str
    operator: str
    source: str
    module_path: str


@dataclass(frozen=True)
class FlopTerm:
    """``flops`` forward FLOPs that scale with the kept share of each family in ``axes``."""

    flops: float
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """The rank- and policy-independent anatomy of a model.

    ``layouts`` gives each parameter, buffer and constant one layout per dimension. Two axes in ``conflicts`` meet in
    one parameter element (an axis that meets itself stands alone in its pair): cutting both leaves elements owned by
    an intersection. ``residual`` names the axes that pass a residual add. ``members`` maps a block family's name to the
    unit that each of its parameters and buffers belongs to. ``order`` lists the state tensors by first use in the
    forward graph. ``notes`` are remarks for the report.
    """

    families: tuple[Family, ...]
    layouts: Mapping[str, tuple[Layout, ...]]
    conflicts: frozenset[frozenset[str]]
    residual: frozenset[str]
    members: Mapping[str, Mapping[str, int]]
    frozen: tuple[Frozen, ...]
    flops: tuple[FlopTerm, ...]
    order: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Family]:
        return {family.name: family for family in self.families}

    @property
    def axes(self) -> tuple[Family, ...]:
        """The axes that a policy may cut."""
        return tuple(family for family in self.families if family.kind == "axis")

    @property
    def blocks(self) -> tuple[Family, ...]:
        """The block families: ``blocks`` (each residual branch) and ``layers`` (all branches of one module)."""
        return tuple(family for family in self.families if family.kind == "block")
