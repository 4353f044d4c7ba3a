"""Who owns which part of every tensor: the data, and questions about units, tensors and elements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch

from sdp_compile.errors import PlanError, did_you_mean
from sdp_compile.ir.program import StateTensor
from sdp_compile.ownership.elements import ElementOwners, Piece
from sdp_compile.ownership.owners import OwnerSet, Ownership, is_member
from sdp_compile.planning.families import CutFamily, Masking
from sdp_compile.structure.families import FlopTerm, Frozen
from sdp_compile.structure.layout import Indices, Layout, families


@dataclass(frozen=True, eq=False, repr=False)
class Assignment:
    """The units, tensors and elements that each worker owns.

    Attributes:
        workers: Number of workers N.
        families: The families that are cut.
        ownership: For each family name the owners of its units.
        state: The full tensors by canonical name, in the order of the original model.
        aliases: Every name of the original ``state_dict()``, with its canonical name.
        layouts: For each tensor one layout per dimension, restricted to the families that are cut.
        members: For each tensor of a droppable block the unit of the block family that it belongs to.
        order: The tensors by first use in the forward graph.
        work: Forward FLOPs at the captured input size.
        policy: The fields of the policy, for the report.
        masking: ``"forward"`` if a worker computes with its subnetwork, ``"backward"`` if it computes with the full
            model and keeps the gradients of what it owns.
        rescale: Whether training multiplies by N / owners where a cut axis is contracted with a parameter.
        notes: Remarks for the report.
        frozen: The parameter dimensions that can never be cut, and why.
        node_size: The number of workers of each node, which decides how gradients travel; 0 for one node with all.
    """

    workers: int
    families: tuple[CutFamily, ...]
    ownership: Mapping[str, Ownership]
    state: Mapping[str, StateTensor]
    aliases: Mapping[str, str]
    layouts: Mapping[str, tuple[Layout, ...]]
    members: Mapping[str, int]
    order: tuple[str, ...]
    work: tuple[FlopTerm, ...]
    policy: Mapping[str, Any]
    masking: Masking = "forward"
    rescale: bool = False
    notes: tuple[str, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    node_size: int = 0

    # -- units ---------------------------------------------------------------------------------------------------

    def owners(self, family: str | CutFamily) -> Ownership:
        """Returns the owners of each unit of a family, given as object or by name."""
        name = family if isinstance(family, str) else family.name
        if name not in self.ownership:
            raise PlanError(f"The plan does not cut a family {name!r}.{did_you_mean(name, self.ownership)}")
        return self.ownership[name]

    def owned(self, family: str | CutFamily, rank: int) -> Indices:
        """Returns the units of a family that ``rank`` owns, ascending."""
        return self.owners(family).owned(self.checked_rank(rank))

    def kept_units(self, rank: int) -> Mapping[str, int]:
        """Returns for each axis that is cut the number of units that ``rank`` owns."""
        axes = (family.name for family in self.families if family.kind == "axis")
        return {name: len(self.owned(name, rank)) for name in axes}

    @cached_property
    def block_family(self) -> str | None:
        """The block family that the plan partitions; None without one."""
        return next((family.name for family in self.families if family.kind == "block"), None)

    def dropped_blocks(self, rank: int) -> frozenset[int]:
        """Returns the units of the block family that ``rank`` does not own."""
        if self.block_family is None:
            return frozenset()
        return frozenset(np.flatnonzero(~self.owners(self.block_family).holds(self.checked_rank(rank))).tolist())

    # -- tensors -------------------------------------------------------------------------------------------------

    def canonical(self, fqn: str) -> str:
        """Returns the canonical name of a tensor given by any of its names."""
        name = self.aliases.get(fqn, fqn)
        if name not in self.state:
            known = [*self.state, *self.aliases]
            raise PlanError(f"The model has no parameter or buffer {fqn!r}.{did_you_mean(fqn, known)}")
        return name

    def kept(self, fqn: str, rank: int) -> tuple[Indices, ...] | None:
        """Returns for each dimension the full coordinates that ``rank`` keeps; their outer product is its mask.

        None if it owns nothing of the tensor.
        """
        name, rank = self.canonical(fqn), self.checked_rank(rank)
        block = self._block_owners(name)
        if block is not None and not is_member(rank, block):
            return None
        kept = tuple(self._elements.kept(layout, rank) for layout in self.layouts[name])
        empty = any(not len(index) and size for index, size in zip(kept, self.state[name].shape, strict=True))
        return None if empty else kept

    def local_shape(self, fqn: str, rank: int) -> tuple[int, ...] | None:
        """Returns the shape of what ``rank`` keeps of a tensor; None if it owns nothing of it."""
        kept = self.kept(fqn, rank)
        return None if kept is None else tuple(len(index) for index in kept)

    def mask(self, fqn: str, rank: int) -> torch.Tensor:
        """Returns the elements of a tensor that ``rank`` owns.

        Args:
            fqn: Any of the tensor's names in the original model.
            rank: A worker.

        Returns:
            A bool tensor of the full shape.

        Raises:
            PlanError: If the model has no tensor, or the plan no worker, of that name or number.
        """
        kept, shape = self.kept(fqn, rank), self.state[self.canonical(fqn)].shape
        result = torch.full(shape, kept is not None, dtype=torch.bool)
        for dim, index in enumerate(kept or ()):
            if len(index) < shape[dim]:
                holds = torch.zeros(shape[dim], dtype=torch.bool)
                holds[torch.from_numpy(index)] = True
                result &= holds.reshape([-1 if other == dim else 1 for other in range(len(shape))])
        return result

    def is_cut(self, fqn: str) -> bool:
        """Whether a family cuts the tensor, or it lies in a block that is partitioned; otherwise it is shared."""
        name = self.canonical(fqn)
        return self._block_owners(name) is not None or any(families(layout) for layout in self.layouts[name])

    def is_trainable(self, name: str) -> bool:
        """Whether the tensor with this canonical name is a parameter that requires a gradient."""
        return self.state[name].kind == "parameter" and self.state[name].requires_grad

    # -- elements ------------------------------------------------------------------------------------------------

    def pieces(self, fqn: str) -> tuple[Piece, ...]:
        """Returns the full tensor split by owner set.

        Only a buffer that is cut along several axes can have a piece without owners.
        """
        name = self.canonical(fqn)
        if name not in self._pieces:
            self._pieces[name] = self._elements.pieces(name, self.layouts[name], self._block_owners(name))
        return self._pieces[name]

    def local_index(self, piece: Piece, rank: int) -> tuple[Indices, ...]:
        """Returns for each dimension where a piece that ``rank`` owns lies in its slice of the tensor."""
        kept = self.kept(piece.name, rank)
        if kept is None or not is_member(rank, piece.owners):
            raise PlanError(
                f"Worker {rank} does not own this piece of {piece.name!r}, which belongs to {piece.owners}."
            )
        return tuple(np.searchsorted(of_dim, index) for of_dim, index in zip(kept, piece.index, strict=True))

    def checked_rank(self, rank: int) -> int:
        """Returns ``rank``; raises `PlanError` if the plan has no such worker."""
        if not 0 <= rank < self.workers:
            raise PlanError(f"rank must be from 0 to {self.workers - 1} for this plan, got {rank}.")
        return rank

    def _block_owners(self, name: str) -> OwnerSet | None:
        if self.block_family is None or name not in self.members:
            return None
        return self.ownership[self.block_family][self.members[name]]

    # -- derived, computed once ----------------------------------------------------------------------------------

    @cached_property
    def _elements(self) -> ElementOwners:
        return ElementOwners(self.ownership, self.workers)

    @cached_property
    def _pieces(self) -> dict[str, tuple[Piece, ...]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        # Index lists and buckets follow from the fields, so they are left out of pickles.
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Assignment:
        return self
