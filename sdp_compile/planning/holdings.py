"""What one worker holds: which tensors, and where they lie in the full ones.

There are two lowerings. *Sliced*, the default, holds smaller tensors with what the worker owns. *Masked*, the
reference, holds full-size parameters and masks.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdp_compile.errors import PlanError
from sdp_compile.ir.program import StateTensor
from sdp_compile.ownership.elements import Piece
from sdp_compile.planning.masks import clear_unowned, mask_tensors
from sdp_compile.planning.plan import Plan
from sdp_compile.planning.regions import Region, full
from sdp_compile.planning.unowned import Unowned, unowned_parts
from sdp_compile.structure.layout import Layout, families, kept_indices

LoweringKind = Literal["sliced", "masked"]


@dataclass(frozen=True, eq=False)
class Held:
    """A tensor that a worker holds under ``name``: the ``region`` of the full tensor ``source``."""

    name: str
    source: str
    region: Region


class Holdings(ABC):
    """The tensors of worker ``rank`` under ``plan``."""

    lowering: ClassVar[LoweringKind]

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, plan.checked_rank(rank)

    def __reduce__(self) -> tuple[type[Holdings], tuple[Plan, int]]:
        return type(self), (self.plan, self.rank)

    @abstractmethod
    def region_of(self, name: str) -> Region | None:
        """Returns where the worker's tensor lies in the full one; None if it holds nothing of it."""

    @abstractmethod
    def _own_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of `region_of`, without making a region: passes ask for it at every node that reads a tensor."""

    @abstractmethod
    def region(self, piece: Piece) -> Region:
        """Returns where a piece that the worker owns lies in the worker's tensor."""

    @abstractmethod
    def place_of_unowned(self, piece: Piece) -> tuple[str, Region]:
        """Returns the tensor that holds a piece of other workers under backward masking, and where in it."""

    @property
    @abstractmethod
    def kept_units(self) -> Mapping[str, int]:
        """The number of units that the worker's graph computes with, for each axis of which it lacks some."""

    @property
    @abstractmethod
    def buffers(self) -> Mapping[str, StateTensor]:
        """The buffers that only the worker's module has, besides the model's own tensors."""

    @property
    def constants(self) -> Mapping[str, Tensor]:
        """The values of those ``buffers`` that follow from the plan alone."""
        return {}

    @property
    def unowned(self) -> Mapping[str, tuple[Unowned, ...]]:
        """Under backward masking, the parts of each parameter that the worker holds without owning them."""
        return {}

    @abstractmethod
    def along(self, layout: Layout, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Selects the values of the indices that the worker holds along one dimension.

        Args:
            layout: The layout of the full dimension.
            values: One value per index of the full dimension.
        """

    @abstractmethod
    def clear_unowned(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets those elements of the worker's ``tensors`` to 0 that it neither owns nor computes with."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of a tensor as the worker holds it; None if it holds nothing of it."""
        if name in self.buffers:
            return self.buffers[name].shape
        return self._own_shape(name)

    def keeps(self, name: str) -> bool:
        """Whether the worker holds any part of this parameter, buffer or constant."""
        return self.shape(name) is not None

    @cached_property
    def digest(self) -> str:
        """Tells apart workers whose tensors of the same name hold different elements."""
        text = hashlib.sha256(f"{self.lowering} {self.plan.masking}".encode())
        for name, tensor in self.plan.state.items():
            kept = self.plan.kept(name, self.rank)
            text.update(f"\n{name} {tensor.shape} {kept is not None}".encode())
            for index in kept or ():
                text.update(index.tobytes())
        return text.hexdigest()[:16]

    def held(self) -> Iterator[Held]:
        """Yields everything that the worker holds of the full tensors: owned parts, then unowned parts if any."""
        for name in self.plan.state:
            region = self.region_of(name)
            if region is not None:
                yield Held(name, name, region)
            yield from (Held(part.name, name, Region(part.index)) for part in self.unowned.get(name, ()))


class SlicedHoldings(Holdings):
    """Holds what the worker owns, and under backward masking the rest of each parameter in buffers."""

    lowering = "sliced"

    def region_of(self, name: str) -> Region | None:
        kept = self.plan.kept(name, self.rank)
        return None if kept is None else Region(kept)

    def _own_shape(self, name: str) -> tuple[int, ...] | None:
        return self.plan.local_shape(name, self.rank)

    def region(self, piece: Piece) -> Region:
        return Region(self.plan.local_index(piece, self.rank))

    def place_of_unowned(self, piece: Piece) -> tuple[str, Region]:
        parts = self.unowned[piece.name]
        # A piece lies in the part of the last dimension in which the worker owns none of its indices.
        part = next(part for part in reversed(parts) if part.dim is None or _lies_in(piece, part, part.dim))
        index = [np.searchsorted(held, wanted) for held, wanted in zip(part.index, piece.index, strict=True)]
        return part.name, Region(index)

    @cached_property
    def kept_units(self) -> Mapping[str, int]:
        return self.plan.kept_units(self.rank) if self.plan.masking == "forward" else {}

    @cached_property
    def buffers(self) -> Mapping[str, StateTensor]:
        return {
            part.name: StateTensor(part.shape, self.plan.state[part.parameter].dtype, "buffer", persistent=False)
            for parts in self.unowned.values()
            for part in parts
        }

    @cached_property
    def unowned(self) -> Mapping[str, tuple[Unowned, ...]]:
        return unowned_parts(self.plan, self.rank)

    def along(self, layout: Layout, values: NDArray[np.float64]) -> NDArray[np.float64]:
        owned = {family: self.plan.owned(family, self.rank) for family in families(layout)}
        return values[kept_indices(layout, owned)]

    def clear_unowned(self, tensors: Mapping[str, Tensor]) -> None:
        """Does nothing: the worker holds no such elements."""


class MaskedHoldings(Holdings):
    """Holds full-size tensors, and the masks of the parameters that the worker does not own completely."""

    lowering = "masked"

    def region_of(self, name: str) -> Region | None:
        return full(self.plan.state[self.plan.canonical(name)].shape)

    def _own_shape(self, name: str) -> tuple[int, ...] | None:
        return self.plan.state[self.plan.canonical(name)].shape

    def region(self, piece: Piece) -> Region:
        return Region(piece.index)

    def place_of_unowned(self, piece: Piece) -> tuple[str, Region]:
        return piece.name, Region(piece.index)

    @property
    def kept_units(self) -> Mapping[str, int]:
        return {}

    @cached_property
    def buffers(self) -> Mapping[str, StateTensor]:
        return {
            name: StateTensor(tuple(mask.shape), mask.dtype, "constant", persistent=False)
            for name, mask in self.constants.items()
        }

    @cached_property
    def constants(self) -> Mapping[str, Tensor]:
        return mask_tensors(self.plan, self.rank)

    def along(self, layout: Layout, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return values

    def clear_unowned(self, tensors: Mapping[str, Tensor]) -> None:
        if self.plan.masking == "forward":
            clear_unowned(tensors, self.plan, self.rank)


def holdings(lowering: LoweringKind, plan: Plan, rank: int) -> Holdings:
    """Returns what worker ``rank`` holds under ``plan`` in a lowering.

    Raises:
        PlanError: If the lowering or the worker does not exist.
    """
    kinds: dict[str, type[Holdings]] = {kind.lowering: kind for kind in (SlicedHoldings, MaskedHoldings)}
    if lowering not in kinds:
        raise PlanError(f"lowering must be 'sliced' or 'masked', got {lowering!r}.")
    return kinds[lowering](plan, rank)


def _lies_in(piece: Piece, part: Unowned, dim: int) -> bool:
    """Whether the part holds the piece's indices along ``dim``; it holds all or none of them."""
    return bool(np.isin(piece.index[dim][0], part.index[dim]))
