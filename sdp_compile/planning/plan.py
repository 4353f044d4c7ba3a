"""The plan: the complete result of partitioning, the same on every rank, and all that can be asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from sdp_compile.errors import PlanError
from sdp_compile.ir.program import Capture, StateTensor
from sdp_compile.ownership import mixing
from sdp_compile.ownership.elements import ElementOwners, Piece
from sdp_compile.ownership.owners import OwnerSet, OwnerSets, Ownership, is_member, refresh_receivers, worker_classes
from sdp_compile.ownership.partition import checked, did_you_mean
from sdp_compile.planning import cost
from sdp_compile.planning import serialisation as plan_json
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES, Bucket, make_buckets
from sdp_compile.planning.families import CutFamily, Masking, Rescale, layouts_of_state, restricted_work
from sdp_compile.structure.families import FlopTerm, Frozen, Structure
from sdp_compile.structure.layout import Indices, Layout, families

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sdp_compile.inspector.plan_report import Finding, Report
    from sdp_compile.policies.base import Policy


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """Which worker owns which part of the model.

    ``state`` and ``layouts`` describe the full tensors (layouts restricted to the families in use), ``aliases`` maps
    every name of the original ``state_dict()`` to its canonical one, ``members`` the tensors of the droppable blocks to
    their unit, ``order`` lists the tensors by first use in the forward graph, ``work`` the forward FLOPs. ``policy`` is
    the policy's own dump. Two plans with one ``digest`` partition one model in one way.
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
    notes: tuple[str, ...] = ()
    frozen: tuple[Frozen, ...] = ()

    @property
    def masking(self) -> Masking:
        """Whether workers compute with what they own (forward) or with all of the model (backward)."""
        return "backward" if self.policy.get("masking") == "backward" else "forward"

    # -- what is owned -------------------------------------------------------------------------------------------

    def owners(self, family: str | CutFamily) -> Ownership:
        """The owners of each unit of a family."""
        name = family if isinstance(family, str) else family.name
        if name not in self.ownership:
            raise PlanError(f"The plan does not cut a family {name!r}.{did_you_mean(name, self.ownership)}")
        return self.ownership[name]

    def owned(self, family: str | CutFamily, rank: int) -> Indices:
        """The units of a family that ``rank`` owns, ascending."""
        return self.owners(family).owned(self._rank(rank))

    def kept_units(self, rank: int) -> Mapping[str, int]:
        """For each axis that is cut the number of units that ``rank`` owns."""
        axes = (family.name for family in self.families if family.kind == "axis")
        return {name: len(self.owned(name, rank)) for name in axes}

    @cached_property
    def block_family(self) -> str | None:
        """The block family that the plan partitions, if any."""
        return next((family.name for family in self.families if family.kind == "block"), None)

    def dropped_blocks(self, rank: int) -> frozenset[int]:
        """The units of the block family that ``rank`` does not own."""
        if self.block_family is None:
            return frozenset()
        return frozenset(np.flatnonzero(~self.owners(self.block_family).holds(self._rank(rank))).tolist())

    # -- tensors -------------------------------------------------------------------------------------------------

    def canonical(self, fqn: str) -> str:
        """The canonical name of a tensor given by any of its names."""
        name = self.aliases.get(fqn, fqn)
        if name not in self.state:
            known = [*self.state, *self.aliases]
            raise PlanError(f"The model has no parameter or buffer {fqn!r}.{did_you_mean(fqn, known)}")
        return name

    def kept(self, fqn: str, rank: int) -> tuple[Indices, ...] | None:
        """Per dimension the full-coordinate indices that ``rank`` keeps: their outer product is its mask.

        None where it owns nothing of the tensor.
        """
        name, rank = self.canonical(fqn), self._rank(rank)
        block = self._block_owners(name)
        if block is not None and not is_member(rank, block):
            return None
        kept = tuple(self._elements.kept(layout, rank) for layout in self.layouts[name])
        empty = any(not len(index) and size for index, size in zip(kept, self.state[name].shape, strict=True))
        return None if empty else kept

    def local_shape(self, fqn: str, rank: int) -> tuple[int, ...] | None:
        """The shape of what ``rank`` keeps of a tensor; None where it owns nothing of it."""
        kept = self.kept(fqn, rank)
        return None if kept is None else tuple(len(index) for index in kept)

    def mask(self, fqn: str, rank: int) -> torch.Tensor:
        """The elements of a tensor that ``rank`` owns, as a bool tensor of the full shape."""
        kept, shape = self.kept(fqn, rank), self.state[self.canonical(fqn)].shape
        result = torch.full(shape, kept is not None, dtype=torch.bool)
        for dim, index in enumerate(kept or ()):
            if len(index) < shape[dim]:
                holds = torch.zeros(shape[dim], dtype=torch.bool)
                holds[torch.from_numpy(index)] = True
                result &= holds.reshape([-1 if other == dim else 1 for other in range(len(shape))])
        return result

    def pieces(self, fqn: str) -> tuple[Piece, ...]:
        """The full tensor split by owner set. Only a buffer cut along several axes can have a piece without owners."""
        name = self.canonical(fqn)
        if name not in self._pieces:
            self._pieces[name] = self._elements.pieces(name, self.layouts[name], self._block_owners(name))
        return self._pieces[name]

    def local_index(self, piece: Piece, rank: int) -> tuple[Indices, ...]:
        """Where a piece that ``rank`` owns lies in its slice of the tensor, per dimension."""
        kept = self.kept(piece.name, rank)
        if kept is None or not is_member(rank, piece.owners):
            raise PlanError(f"Worker {rank} does not own this piece of {piece.name!r}; its owners are {piece.owners}.")
        return tuple(np.searchsorted(of_dim, index) for of_dim, index in zip(kept, piece.index, strict=True))

    # -- communication -------------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> tuple[OwnerSet, ...]:
        """The distinct owner sets of two and more workers, sorted: the order in which all ranks create their groups."""
        known = OwnerSets()
        for name, tensor in self.state.items():
            if tensor.kind != "constant":
                for piece in self.pieces(name):
                    known.number(piece.owners)
        return tuple(sorted(owners for owners in known.sets if len(owners) > 1))

    def buckets(self, rank: int | None = None, bucket_bytes: int = DEFAULT_BUCKET_BYTES) -> tuple[Bucket, ...]:
        """The gradient buckets that ``rank`` reduces (None: all), in the global order and with global numbers.

        Parameters that the graph never uses have no gradient and are in no bucket.
        """
        if bucket_bytes not in self._buckets:
            ready = (
                piece
                for name in reversed(self.order)
                if self._is_trainable(name)
                for piece in self.pieces(name)
                if len(piece.owners) > 1
            )
            self._buckets[bucket_bytes] = make_buckets(ready, self.state, bucket_bytes)
        buckets = self._buckets[bucket_bytes]
        if rank is None:
            return buckets
        return tuple(bucket for bucket in buckets if is_member(self._rank(rank), bucket.owners))

    def spectral_gap(self) -> float:
        """How fast averaging over owners mixes the cut parameters of all workers: 1 at once, 0 never."""
        return mixing.spectral_gap(self._elements_by_owners(cut_only=True), self.workers)

    # -- figures -------------------------------------------------------------------------------------------------

    def coverage(self) -> mixing.Coverage:
        """Owners per parameter element: min, mean and max."""
        return mixing.coverage(self._elements_by_owners(cut_only=False), self._elements_by_owners(cut_only=True))

    def memory(self, rank: int | None = None) -> cost.Memory:
        """The exact bytes that ``rank`` holds with AdamW; those of the dense model for None."""
        if rank is None:
            return cost.memory(self.state, {name: tensor.shape for name, tensor in self.state.items()})
        own = cost.memory(self.state, {name: self.local_shape(name, rank) for name in self.state})
        # Under backward masking a worker computes with all parameters, and trains its own.
        return own if self.masking == "forward" else replace(own, parameters=self.memory().parameters)

    def flops(self, rank: int | None = None) -> float:
        """Forward FLOPs of ``rank`` at the captured input size; those of the dense model for None."""
        if rank is None or self.masking == "backward":
            return sum(term.flops for term in self.work)
        return float(self._flops[self._rank(rank)])

    def communication(self, rank: int) -> cost.Communication:
        """The gradient bytes that ``rank`` sends per step, against data parallelism's."""
        self._rank(rank)
        pieces = (
            piece
            for name in self.state
            if self._is_trainable(name)
            for piece in self.pieces(name)
            if is_member(rank, piece.owners)
        )
        result = cost.communication(self.workers, pieces, self.state)
        return result if self.masking == "forward" else replace(result, refresh=self._refresh_bytes(rank))

    @cached_property
    def refreshed(self) -> tuple[Piece, ...]:
        """Under backward masking, the trainable pieces whose values some worker computes with but does not own."""
        names = filter(self._is_trainable, self.state) if self.masking == "backward" else ()
        pieces = (piece for name in names for piece in self.pieces(name) if piece.numel)
        return tuple(piece for piece in pieces if len(piece.owners) < self.workers)

    def _refresh_bytes(self, rank: int) -> float:
        sent = 0
        for number, piece in enumerate(self.refreshed):
            if is_member(rank, piece.owners):
                receivers = refresh_receivers(number, piece.owners, rank, self.workers)
                sent += receivers * piece.numel * self.state[piece.name].dtype.itemsize
        return float(sent)

    def rescales(self, rank: int) -> tuple[Rescale, ...]:
        """The factors that the policy's ``rescale`` applies in training on ``rank``; none where it is off."""
        if not self.policy.get("rescale") or self.masking == "backward":
            return ()
        return tuple(self._rescale(family, rank) for family in self.families)

    def worker_classes(self) -> list[list[int]]:
        """The workers grouped by what they own: all figures agree within a group."""
        return worker_classes(
            {owners for ownership in self.ownership.values() for owners in ownership.sets}, self.workers
        )

    def report(self) -> Report:
        """What is cut and what is not, and why, for a terminal: print it with rich, or as text with str()."""
        from sdp_compile.inspector.plan_report import Report

        return Report(self)

    def diagnose(self) -> list[Finding]:
        """What a user should know of this plan before training with it, worst first."""
        from sdp_compile.inspector.plan_report import diagnose

        return diagnose(self)

    # -- identity ------------------------------------------------------------------------------------------------

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of all that decides what the workers compute and exchange.

        Figures, remarks and source positions are left out: they can differ between machines that train together.
        """
        return plan_json.digest(self)

    def to_json(self) -> str:
        """The whole plan; it can be read without the model."""
        return plan_json.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that ``to_json`` wrote; PlanError where the text is no such plan."""
        return plan_json.loads(text)

    def __repr__(self) -> str:
        cut = ", ".join(f"{family.name} ({family.units})" for family in self.families[:4])
        more = f", {len(self.families) - 4} more" if len(self.families) > 4 else ""
        return f"Plan(workers={self.workers}, families=[{cut}{more}], digest={self.digest[:12]})"

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __getstate__(self) -> dict[str, Any]:
        # Index lists and buckets are derived: leave them out of pickles.
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        return self

    # -- derived, computed once ----------------------------------------------------------------------------------

    @cached_property
    def _elements(self) -> ElementOwners:
        return ElementOwners(self.ownership, self.workers)

    @cached_property
    def _pieces(self) -> dict[str, tuple[Piece, ...]]:
        return {}

    @cached_property
    def _flops(self) -> NDArray[np.float64]:
        return cost.flops_per_worker(self.work, self.families, self.ownership, self.workers)

    @cached_property
    def _buckets(self) -> dict[int, tuple[Bucket, ...]]:
        return {}

    def _rank(self, rank: int) -> int:
        if not 0 <= rank < self.workers:
            raise PlanError(f"There is no worker {rank}: the plan has workers 0 to {self.workers - 1}.")
        return rank

    def _block_owners(self, name: str) -> OwnerSet | None:
        if self.block_family is None or name not in self.members:
            return None
        return self.ownership[self.block_family][self.members[name]]

    def _is_trainable(self, name: str) -> bool:
        return self.state[name].kind == "parameter" and self.state[name].requires_grad

    def is_cut(self, fqn: str) -> bool:
        """Whether a family cuts the tensor, or it lies in a block that is partitioned; else it is shared."""
        name = self.canonical(fqn)
        return self._block_owners(name) is not None or any(families(layout) for layout in self.layouts[name])

    def _elements_by_owners(self, cut_only: bool) -> dict[OwnerSet, int]:
        """The number of parameter elements of each owner set."""
        known, elements = OwnerSets(), list[int]()
        for piece in self._parameter_pieces(cut_only):
            number = known.number(piece.owners)
            elements += [0] * (number + 1 - len(elements))
            elements[number] += piece.numel
        return dict(zip(known.sets, elements, strict=True))

    def _parameter_pieces(self, cut_only: bool) -> Iterator[Piece]:
        for name, tensor in self.state.items():
            if tensor.kind == "parameter" and not (cut_only and not self.is_cut(name)):
                # A parameter that a family cuts in part (a fused projection) also has a part that is shared.
                yield from (piece for piece in self.pieces(name) if not cut_only or len(piece.owners) < self.workers)

    def _rescale(self, family: CutFamily, rank: int) -> Rescale:
        owners, units = self.ownership[family.name], self.owned(family.name, rank).tolist()
        factors = tuple(self.workers / len(owners[unit]) for unit in units)
        return Rescale(family.name, family.kind, tuple(units), factors)

    def __rich__(self) -> RenderableType:
        """A short summary; `report` and the inspector say more."""
        from sdp_compile.inspector.render.summary import render_summary

        return render_summary(self)

    def __str__(self) -> str:
        from sdp_compile.inspector.render.summary import summary_text

        return summary_text(self)

    def _repr_html_(self) -> str:
        from sdp_compile.inspector.shown import html

        return html(self)


def make_plan(capture: Capture, structure: Structure, policy: Policy, workers: int) -> Plan:
    """Asks the policy for a partition of the structure, validates the answer and completes it to a plan."""
    parameters = [name for name, tensor in capture.state.items() if tensor.kind == "parameter"]
    partition = checked(structure, policy.partition(structure, workers), workers, parameters)
    block_family = next((name for name in partition if structure.by_name[name].kind == "block"), None)
    cut = frozenset(partition)
    members = dict(structure.members.get(block_family, {})) if block_family is not None else {}
    described = policy.describe()
    masking: Masking = described.get("masking", "forward")
    if masking == "backward":
        members = {name: unit for name, unit in members.items() if name in parameters}
    return Plan(
        workers=workers,
        families=tuple(
            CutFamily(
                family.name,
                family.kind,
                family.units,
                family.unit_bytes,
                family.unit_flops,
                family.module_path,
                family.depth,
                family.parameters,
                family.unit_names,
                partition[family.name].replicas,
            )
            for family in structure.families
            if family.name in partition
        ),
        ownership={family.name: partition[family.name] for family in structure.families if family.name in partition},
        state=dict(capture.state),
        aliases=dict(capture.aliases),
        layouts=layouts_of_state(capture.state, structure, cut, masking),
        members=members,
        order=tuple(name for name in structure.order if name in capture.state),
        work=restricted_work(structure.flops, cut),
        policy=described,
        notes=(*partition.notes, *structure.notes),
        frozen=structure.frozen,
    )
