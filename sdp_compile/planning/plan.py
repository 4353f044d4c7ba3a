"""The plan: the complete result of partitioning, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from sdp_compile.ownership import mixing
from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.levels import Levels, make_levels
from sdp_compile.ownership.loads import flops_per_worker
from sdp_compile.ownership.owners import OwnerSet, OwnerSets, is_member, refresh_sources, worker_classes
from sdp_compile.planning import cost, schedule, serialisation
from sdp_compile.planning.assignment import Assignment
from sdp_compile.planning.buckets import DEFAULT_BUCKET_BYTES, Bucket, make_buckets
from sdp_compile.planning.families import CutFamily, Rescale
from sdp_compile.planning.finding import Finding
from sdp_compile.planning.moves import Reslicing, Split, Traffic, check_same_model, traffic


class Printable(Protocol):
    """Something to show: rich prints it in colour, ``str()`` gives plain text, a notebook shows HTML."""

    def __rich__(self) -> RenderableType: ...

    def _repr_html_(self) -> str: ...


class PlanReport(Printable, Protocol):
    """What `Plan.report` returns."""

    @property
    def summary(self) -> Printable:
        """The plan in a few lines."""

    @property
    def findings(self) -> Sequence[Finding]:
        """What a user should know before training, worst first."""


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Assignment):
    """Who owns what, what each worker pays for it, and in which order workers communicate.

    ``sdp.plan(model, policy, workers=N)`` makes one without a process group. Two plans with the same ``digest``
    partition the same model in the same way. The attributes are those of `Assignment`.
    """

    # -- communication -------------------------------------------------------------------------------------------

    @cached_property
    def levels(self) -> Levels:
        """The steps of a reduction, each with the groups of workers that run side by side."""
        return make_levels(self._owner_sets, self.workers, self.node_size or self.workers)

    @property
    def nodes(self) -> int:
        """The number of nodes."""
        return self.workers // (self.node_size or self.workers)

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
        """Returns the gradient buckets that ``rank`` averages, in the global order and with global numbers.

        Parameters that the graph never uses have no gradient, so no bucket holds them.

        Args:
            rank: A worker; None for the buckets of all workers.
            bucket_bytes: Upper bound of what a worker holds of a round in bytes; a larger parameter has its own round.
        """
        if bucket_bytes not in self._buckets:
            ready = (
                piece
                for name in reversed(self.order)
                if self.is_trainable(name)
                for piece in self.pieces(name)
                if len(piece.owners) > 1
            )
            self._buckets[bucket_bytes] = make_buckets(ready, self.state, bucket_bytes, self.levels.classes)
        buckets = self._buckets[bucket_bytes]
        if rank is None:
            return buckets
        return tuple(bucket for bucket in buckets if is_member(self.checked_rank(rank), bucket.owners))

    def rounds(self, bucket_bytes: int = DEFAULT_BUCKET_BYTES) -> int:
        """Returns the number of rounds in which the workers average their gradients; see `buckets`."""
        buckets = self.buckets(None, bucket_bytes)
        return buckets[-1].round + 1 if buckets else 0

    def exchanges(self, bucket_bytes: int = DEFAULT_BUCKET_BYTES) -> tuple[bool, ...]:
        """Returns for each round whether workers of different classes have something in common in it.

        Otherwise nobody exchanges anything in that round: all workers leave the exchange out.

        Args:
            bucket_bytes: Upper bound of what a worker holds of a round in bytes.
        """
        result = [False] * self.rounds(bucket_bytes)
        for level in self.levels:
            for bucket in self.buckets(None, bucket_bytes) if level.kind == "exchange" else ():
                result[bucket.round] |= len(level.members(bucket.owners[0], bucket.owners)) > 1
        return tuple(result)

    def collectives(self, rank: int, bucket_bytes: int = DEFAULT_BUCKET_BYTES) -> int:
        """Returns in how many collectives ``rank`` averages its gradients in one step.

        A round takes one there and one back for each level, or a single one if the last level's workers own the same.
        A worker takes part in the exchange of rounds of which it holds nothing, too. Rounds in which classes have
        nothing in common have no exchange.

        Args:
            rank: A worker.
            bucket_bytes: Upper bound of what a worker holds of a round in bytes.
        """
        holding = len({bucket.round for bucket in self.buckets(rank, bucket_bytes)})
        of_classes = sum(level.kind == "class" for level in self.levels)
        within = 2 * of_classes - bool(self.levels and self.levels[-1].kind == "class")
        return within * holding + 2 * sum(self.exchanges(bucket_bytes))

    def check_order(self, bucket_bytes: int = DEFAULT_BUCKET_BYTES) -> None:
        """Proves that workers which average gradients by this plan never wait for each other forever.

        `sdp_compile.sdp_compile` and ``sdp-compile check`` do so before anything is sent.

        Args:
            bucket_bytes: Upper bound of what a worker holds of a round in bytes.

        Raises:
            PlanError: If they could. The error names the workers and the collectives.
        """
        schedule.check_order(
            self.levels,
            self.worker_classes(),
            self.exchanges(bucket_bytes),
            lambda rank: self.buckets(rank, bucket_bytes),
        )

    @cached_property
    def refreshed(self) -> tuple[Piece, ...]:
        """Under backward masking, the trainable pieces whose values some worker computes with but does not own."""
        names = filter(self.is_trainable, self.state) if self.masking == "backward" else ()
        pieces = (piece for name in names for piece in self.pieces(name) if piece.numel)
        return tuple(piece for piece in pieces if len(piece.owners) < self.workers)

    def worker_classes(self) -> list[list[int]]:
        """Returns the workers grouped by what they own: all figures agree within a group."""
        return worker_classes(self._owner_sets, self.workers)

    # -- figures -------------------------------------------------------------------------------------------------

    def coverage(self) -> mixing.Coverage:
        """Returns the owners per parameter element: minimum, mean and maximum."""
        return mixing.coverage(self._elements_by_owners(cut_only=False), self._elements_by_owners(cut_only=True))

    def spectral_gap(self) -> float:
        """Returns how fast averaging over owners mixes the cut parameters of all workers: 1 is at once, 0 is never."""
        return mixing.spectral_gap(self._elements_by_owners(cut_only=True), self.workers)

    def redundancy(self) -> mixing.Redundancy:
        """Returns how many workers and how many nodes own each cut parameter, at least."""
        return mixing.redundancy(self._elements_by_owners(cut_only=True), self.workers, self.node_size or self.workers)

    def memory(self, rank: int | None = None) -> cost.Memory:
        """Returns the exact bytes that ``rank`` holds with AdamW; None means the dense model."""
        if rank is None:
            return cost.memory(self.state, {name: tensor.shape for name, tensor in self.state.items()})
        own = cost.memory(self.state, {name: self.local_shape(name, rank) for name in self.state})
        # Under backward masking a worker computes with all parameters, and trains its own.
        return own if self.masking == "forward" else replace(own, parameters=self.memory().parameters)

    def flops(self, rank: int | None = None) -> float:
        """Returns the forward FLOPs of ``rank`` at the captured input size; None means the dense model."""
        if rank is None or self.masking == "backward":
            return sum(term.flops for term in self.work)
        return float(self._flops[self.checked_rank(rank)])

    def communication(self, rank: int) -> cost.Communication:
        """Returns the bytes that ``rank`` sends per step, and what data parallelism would send."""
        self.checked_rank(rank)
        pieces = (
            piece
            for name in self.order
            if self.is_trainable(name)
            for piece in self.pieces(name)
            if is_member(rank, piece.owners)
        )
        result = cost.communication(self.workers, pieces, self.state)
        return result if self.masking == "forward" else replace(result, refresh=self._refresh_bytes(rank))

    def moves(
        self, other: Plan, states: int = 2, sharded: bool = False, bucket_bytes: int = DEFAULT_BUCKET_BYTES
    ) -> Traffic:
        """Returns what the workers send each other when ``other`` takes the place of this plan; print it.

        Nothing is sent that its receiver has: what it owns by both plans, or computes with under backward masking.

        Args:
            other: A plan of the same model for as many workers.
            states: The number of values that the optimizer keeps of each element; 2 for AdamW.
            sharded: Whether the owners split them, as with a `ShardedOptimizer`.
            bucket_bytes: Upper bound of the size of one gradient reduction, which decides how they are split.

        Raises:
            PlanError: If ``other`` is the plan of another model or number of workers.
        """
        check_same_model(self, other)
        both = (self.splits(bucket_bytes), other.splits(bucket_bytes)) if sharded else None
        change = Reslicing(self, other, both)
        found = [
            (move, tensor.dtype.itemsize * factor)
            for name, tensor in self.state.items()
            for factor, parts in (
                (1, change.values(name) if tensor.kind != "constant" else ()),
                (states, change.states(name) if self.is_trainable(name) else ()),
            )
            for move in parts
        ]
        return traffic(self.workers, found)

    def splits(self, bucket_bytes: int = DEFAULT_BUCKET_BYTES) -> list[Split]:
        """Returns all buckets, each with its owners in the order of the chunks that they average."""
        return [(bucket, self.levels.in_chunk_order(bucket.owners)) for bucket in self.buckets(None, bucket_bytes)]

    def rescales(self, rank: int) -> tuple[Rescale, ...]:
        """Returns the factors that ``rescale`` applies in training on ``rank``; none if it is off."""
        if not self.rescale or self.masking == "backward":
            return ()
        return tuple(self._rescale(family, rank) for family in self.families)

    # -- reports -------------------------------------------------------------------------------------------------

    def report(self) -> PlanReport:
        """Returns what is cut, what is not and why, and the costs of each worker; print it with rich or ``print()``."""
        from sdp_compile.inspector.plan_report import Report

        return Report(self)

    def diagnose(self) -> list[Finding]:
        """Returns what a user should know about this plan before training, worst first."""
        return list(self.report().findings)

    def __rich__(self) -> RenderableType:
        return self.report().summary.__rich__()

    def __str__(self) -> str:
        return str(self.report().summary)

    def _repr_html_(self) -> str:
        return self.report().summary._repr_html_()

    def __repr__(self) -> str:
        cut = ", ".join(f"{family.name} ({family.units})" for family in self.families[:4])
        more = f", {len(self.families) - 4} more" if len(self.families) > 4 else ""
        return f"Plan(workers={self.workers}, families=[{cut}{more}], digest={self.digest[:12]})"

    # -- identity ------------------------------------------------------------------------------------------------

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of everything that decides what the workers compute and exchange.

        Figures, remarks and source positions are left out, because they can differ between machines that train
        together.
        """
        return serialisation.digest(self)

    def to_json(self) -> str:
        """Returns the whole plan as JSON text, which can be read without the model."""
        return serialisation.dumps(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Returns the plan that `to_json` wrote; raises `PlanError` for any other text."""
        return serialisation.loads(text, cls)

    def __eq__(self, other: object) -> bool:
        return self.to_json() == other.to_json() if isinstance(other, Plan) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    # -- derived, computed once ----------------------------------------------------------------------------------

    @cached_property
    def _flops(self) -> NDArray[np.float64]:
        return flops_per_worker(self.work, self.families, self.ownership, self.workers)

    @cached_property
    def _buckets(self) -> dict[int, tuple[Bucket, ...]]:
        return {}

    @cached_property
    def _owner_sets(self) -> list[OwnerSet]:
        """The distinct owner sets of all units."""
        known = OwnerSets()
        for ownership in dict.fromkeys(self.ownership.values()):
            for owners in ownership.sets:
                known.number(owners)
        return known.sets

    def _refresh_bytes(self, rank: int) -> float:
        group, shares = self.levels.exchange_group(rank), len(self.levels.sharers(rank))
        sent = 0.0
        for number, piece in enumerate(self.refreshed):
            nbytes = piece.numel * self.state[piece.name].dtype.itemsize
            if is_member(rank, piece.owners):
                sources = refresh_sources(number, piece.owners, group)
                sent += sum(source == rank for source in sources.values()) * nbytes / shares
            else:  # what the workers of a node have fetched in shares
                sent += (shares - 1) / shares * nbytes
        return sent

    def _elements_by_owners(self, cut_only: bool) -> dict[OwnerSet, int]:
        """Returns the number of parameter elements of each owner set."""
        known, elements = OwnerSets(), list[int]()
        for piece in self._parameter_pieces(cut_only):
            number = known.number(piece.owners)
            elements += [0] * (number + 1 - len(elements))
            elements[number] += piece.numel
        return dict(zip(known.sets, elements, strict=True))

    def _parameter_pieces(self, cut_only: bool) -> Iterator[Piece]:
        for name, tensor in self.state.items():
            if tensor.kind == "parameter" and not (cut_only and not self.is_cut(name)):
                # A parameter of which a family cuts a part (a fused projection) also has a shared part.
                yield from (piece for piece in self.pieces(name) if not cut_only or len(piece.owners) < self.workers)

    def _rescale(self, family: CutFamily, rank: int) -> Rescale:
        owners, units = self.ownership[family.name], self.owned(family.name, rank).tolist()
        factors = tuple(self.workers / len(owners[unit]) for unit in units)
        return Rescale(family.name, family.kind, tuple(units), factors)
