"""What must travel between workers when one plan takes the place of another: nothing that its receiver has already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from sdp_compile.errors import PlanError
from sdp_compile.formatting import size
from sdp_compile.ownership.elements import Piece
from sdp_compile.ownership.owners import OwnerSet, is_member
from sdp_compile.planning.assignment import Assignment
from sdp_compile.planning.boxes import flat_boxes
from sdp_compile.planning.buckets import Bucket
from sdp_compile.structure.layout import Indices

_MOST_ROWS = 16

Route = tuple[int, int]
"""Who sends, and who receives; a worker that has the values already is its own sender."""


@dataclass(frozen=True, eq=False)
class Tile:
    """A part of a full tensor that the same workers hold.

    Attributes:
        piece: The piece of the plan that it is a part of.
        index: The indices of the full tensor along each dimension; the tile is their outer product.
        holders: The workers that hold it.
        start: Its first element in the flat order of the piece, if the owners of the piece split it among them: then
            its elements are consecutive. None if it is the whole piece.
    """

    piece: Piece
    index: tuple[Indices, ...]
    holders: OwnerSet
    start: int | None = None


@dataclass(frozen=True, eq=False)
class Move:
    """A part of a full tensor that lies in one tile before and in one tile after.

    Attributes:
        index: The indices of the full tensor along each dimension.
        before: The tile in which it lies.
        after: The tile in which it will lie.
        routes: How each holder of the latter gets it.
    """

    index: tuple[Indices, ...]
    before: Tile
    after: Tile
    routes: tuple[Route, ...]

    @property
    def numel(self) -> int:
        """The number of elements."""
        return prod(map(len, self.index))


class Reslicing:
    """What moves when a plan takes the place of another one of the same model and workers.

    Args:
        before: The plan until now.
        after: The plan from now on.
        sharded: The buckets of both plans, by which the owners split optimizer states; None if each owner has all.
    """

    def __init__(
        self, before: Assignment, after: Assignment, sharded: tuple[Sequence[Split], Sequence[Split]] | None = None
    ) -> None:
        self.before, self.after = before, after
        self._shards = None if sharded is None else (_shards(sharded[0]), _shards(sharded[1]))
        self._numbers = {name: number for number, name in enumerate(before.state)}
        self._common: dict[tuple[int, int], tuple[Indices, Indices, Indices]] = {}

    def values(self, name: str) -> list[Move]:
        """Returns how the values of a parameter or buffer move.

        Under backward masking every worker has all values, its own and those that it computes with.
        """
        return self._moves(name, _valued(self.before, name), _valued(self.after, name))

    def states(self, name: str) -> list[Move]:
        """Returns how each per-element state that an optimizer keeps of a parameter moves."""
        before, after = (None, None) if self._shards is None else self._shards
        return self._moves(name, _stepped(self.before, name, before), _stepped(self.after, name, after))

    def _moves(self, name: str, before: Sequence[Tile], after: Sequence[Tile]) -> list[Move]:
        result: list[Move] = []
        first = self._numbers[name]
        for new in after:
            for old in before:
                common = tuple(map(self._overlap, old.index, new.index))
                if all(map(len, common)):
                    result.append(Move(common, old, new, _routes(first + len(result), old.holders, new.holders)))
        return result

    def _overlap(self, one: Indices, other: Indices) -> Indices:
        """Returns the indices that are in both lists; layers of equal layout share theirs, so each pair counts once."""
        if one is other:
            return one
        key = id(one), id(other)
        if key not in self._common:
            self._common[key] = one, other, np.intersect1d(one, other, assume_unique=True)  # keeps the ids in use
        return self._common[key][2]


Split = tuple[Bucket, OwnerSet]
"""A bucket, and its owners in the order of their chunks."""


@dataclass(frozen=True, eq=False)
class Traffic:
    """What workers send each other when they change their plan.

    Attributes:
        nbytes: The bytes that each worker (row) sends to each other one (column).
        held: The bytes that all workers hold afterwards, of the same tensors.
    """

    nbytes: NDArray[np.int64]
    held: int

    def sent(self, rank: int) -> int:
        """Returns the bytes that a worker sends."""
        return int(self.nbytes[rank].sum())

    def received(self, rank: int) -> int:
        """Returns the bytes that a worker receives."""
        return int(self.nbytes[:, rank].sum())

    @cached_property
    def total(self) -> int:
        """The bytes that all workers send."""
        return int(self.nbytes.sum())

    def __str__(self) -> str:
        share = self.total / self.held if self.held else 0.0
        most_sent, most_received = self.nbytes.sum(1).max(initial=0), self.nbytes.sum(0).max(initial=0)
        summary = (
            f"Re-slicing sends {size(self.total)} in all, {share:.1%} of what the workers hold afterwards; one worker "
            f"sends at most {size(int(most_sent))} and receives at most {size(int(most_received))}."
        )
        workers = range(len(self.nbytes)) if self.total else range(0)
        lines = [
            f"  worker {rank} to "
            + ", ".join(f"{other}: {size(int(self.nbytes[rank, other]))}" for other in workers if other != rank)
            for rank in workers[:_MOST_ROWS]
        ]
        more = [f"  and {len(workers) - _MOST_ROWS} more workers"] if len(workers) > _MOST_ROWS else []
        return "\n".join([summary, *lines, *more])


def check_same_model(before: Assignment, after: Assignment) -> None:
    """Raises `PlanError` if a plan cannot take the place of another one: the model or number of workers differs."""
    if after.workers != before.workers:
        raise PlanError(
            f"The plan is for {after.workers} workers, and there are {before.workers}. Make one for {before.workers}; "
            "to go on with other workers, save a checkpoint and load it there."
        )
    if list(after.state) != list(before.state):
        one = next(iter(set(after.state).symmetric_difference(before.state)), "the order of parameters")
        raise PlanError(f"The plan is that of another model: they differ in {one!r}. Make one of this model.")
    for name, tensor in before.state.items():
        if (other := after.state[name]) != tensor:
            raise PlanError(f"The plan is that of another model or capture: {name!r} is {other}, here {tensor}.")


def same_owners(before: Assignment, after: Assignment, name: str) -> bool:
    """Whether each element of a tensor has the same owners by two plans.

    Args:
        before: One plan.
        after: The other.
        name: The tensor.
    """
    old, new = before.pieces(name), after.pieces(name)
    return len(old) == len(new) and all(
        one.owners == other.owners and all(map(np.array_equal, one.index, other.index))
        for one, other in zip(old, new, strict=True)
    )


def traffic(workers: int, moves: Iterable[tuple[Move, int]]) -> Traffic:
    """Adds up what moves.

    Args:
        workers: The number of workers.
        moves: What moves, each with the bytes of an element.
    """
    nbytes, held = np.zeros((workers, workers), dtype=np.int64), 0
    for move, itemsize in moves:
        own = move.numel * itemsize
        for sender, receiver in move.routes:
            held += own
            if sender != receiver:
                nbytes[sender, receiver] += own
    return Traffic(nbytes, held)


def _routes(number: int, old: OwnerSet, new: OwnerSet) -> tuple[Route, ...]:
    """Deals those who lack something to those who have it, in turn, starting with another one for each part."""
    lacking = [worker for worker in new if not is_member(worker, old)]
    sources = {worker: old[(number + place) % len(old)] for place, worker in enumerate(lacking)}
    return tuple((sources.get(worker, worker), worker) for worker in new)


def _valued(plan: Assignment, name: str) -> list[Tile]:
    everyone = tuple(range(plan.workers))
    everywhere = plan.masking == "backward" and plan.state[name].kind == "parameter"
    return [
        Tile(piece, piece.index, everyone if everywhere else piece.owners)
        for piece in plan.pieces(name)
        if piece.owners and piece.numel
    ]


def _stepped(plan: Assignment, name: str, shards: dict[str, dict[int, list[Tile]]] | None) -> list[Tile]:
    own = {} if shards is None else shards.get(name, {})
    result: list[Tile] = []
    for piece in plan.pieces(name):
        if id(piece) in own:
            result += own[id(piece)]
        elif piece.owners and piece.numel:
            result.append(Tile(piece, piece.index, piece.owners))
    return result


def _shards(buckets: Iterable[Split]) -> dict[str, dict[int, list[Tile]]]:
    """Returns the tiles of each piece that lies in a bucket, by the name of the parameter and the piece's identity."""
    result: dict[str, dict[int, list[Tile]]] = {}
    for bucket, owners in buckets:
        position = 0
        for piece in bucket.pieces:
            tiles = result.setdefault(piece.name, {}).setdefault(id(piece), [])
            for place, owner in enumerate(owners):
                first = place * bucket.chunk - position
                tiles += _consecutive(piece, owner, max(first, 0), min(first + bucket.chunk, piece.numel))
            position += piece.numel
    return result


def _consecutive(piece: Piece, owner: int, start: int, stop: int) -> Iterator[Tile]:
    for box in flat_boxes(piece.shape, start, stop):
        index = tuple(full[part] for full, part in zip(piece.index, box.slices, strict=True))
        yield Tile(piece, index, (owner,), start)
        start += box.numel
