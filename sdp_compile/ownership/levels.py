"""The levels of a reduction: in each, disjoint groups of workers run side by side.

Workers that own the same units form a *class*. Few classes of equal size, as all designs make them, let every reduction
take two or three steps: among workers of one class, who add whole subnetworks, and among one worker of each class, who
exchange what they own together. A worker is then a member of at most three groups, however many workers there are.
Classes of unequal sizes are split into equal parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import gcd
from typing import Literal, TypeAlias, overload

import numpy as np

from sdp_compile.ownership.owners import OwnerSet, is_member, worker_classes
from sdp_compile.structure.layout import Indices

LevelKind = Literal["class", "exchange"]

Grid: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


@dataclass(frozen=True)
class Level:
    """One step of a reduction.

    Attributes:
        kind: ``"class"`` if the members of a group own the same units, so that each ends with one part of all that they
            add up. ``"exchange"`` if they own different ones and add up what they have in common.
        groups: The groups, each ascending; every worker is in exactly one, and all have the same size.
        in_node: Whether no group crosses a node.
    """

    kind: LevelKind
    groups: tuple[OwnerSet, ...]
    in_node: bool

    @property
    def size(self) -> int:
        """The number of workers in each group."""
        return len(self.groups[0])

    def group(self, rank: int) -> OwnerSet:
        """Returns the group of a worker."""
        return self.groups[self.numbers[rank]]

    def members(self, rank: int, owners: OwnerSet) -> OwnerSet:
        """Returns who in the group of a worker owns what ``owners`` own, ascending."""
        group = self.group(rank)
        if self.kind == "class":
            return group
        if len(self.groups) == 1:
            return owners
        return tuple(worker for worker in group if is_member(worker, owners))

    @cached_property
    def numbers(self) -> Indices:
        """The number of each worker's group."""
        result = np.empty(len(self.groups) * self.size, dtype=np.int64)
        for number, group in enumerate(self.groups):
            result[np.asarray(group)] = number
        return result


@dataclass(frozen=True)
class Levels(Sequence[Level]):
    """All levels of a plan, in the order in which gradients travel; averages travel back in the opposite order.

    Attributes:
        levels: The levels; none with one worker.
        workers: The number of workers N.
        node_size: The number of workers of each node.
        classes: The workers of each class; of equal parts of them where the classes have unequal sizes.
        why: Why all workers exchange at once although some own the same units; empty otherwise.
    """

    levels: tuple[Level, ...]
    workers: int
    node_size: int
    classes: tuple[OwnerSet, ...]
    why: str = ""

    @overload
    def __getitem__(self, index: int) -> Level: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Level]: ...

    def __getitem__(self, index: int | slice) -> Level | Sequence[Level]:
        return self.levels[index]

    def __len__(self) -> int:
        return len(self.levels)

    def __iter__(self) -> Iterator[Level]:
        return iter(self.levels)

    def exchange_group(self, rank: int) -> OwnerSet:
        """Returns the workers among which a worker exchanges what they own together; itself if all own the same."""
        return next((level.group(rank) for level in self.levels if level.kind == "exchange"), (rank,))

    def sharers(self, rank: int) -> OwnerSet:
        """Returns the workers of a worker's node that can share what they fetch from other nodes, itself among them."""
        first = self.levels[0] if self.levels else None
        if first is None or first.kind != "class" or not first.in_node or not self._sends_alike:
            return (rank,)
        return first.group(rank)

    @cached_property
    def _sends_alike(self) -> bool:
        """Whether the exchange leaves nodes, and all its groups have the classes in one order."""
        exchange = next((level for level in self.levels if level.kind == "exchange" and not level.in_node), None)
        if exchange is None:
            return False
        numbers = np.empty(self.workers, dtype=np.int64)
        for number, members in enumerate(self.classes):
            numbers[list(members)] = number
        return len({tuple(numbers[list(group)].tolist()) for group in exchange.groups}) == 1

    def in_chunk_order(self, owners: OwnerSet) -> OwnerSet:
        """Returns owners in the order of the chunks that they end with after all levels.

        At each level the members of a group split what they hold evenly, in their order.
        """
        workers = np.asarray(owners, dtype=np.int64)
        chunks = np.zeros(len(workers), dtype=np.int64)
        for level in self.levels:
            numbers = level.numbers[workers]
            counts = np.bincount(numbers)
            by_group = np.argsort(numbers, kind="stable")
            among_members = np.empty(len(workers), dtype=np.int64)
            among_members[by_group] = np.arange(len(workers)) - (np.cumsum(counts) - counts)[numbers[by_group]]
            chunks = chunks * counts[numbers] + among_members
        return tuple(workers[np.argsort(chunks)].tolist())

    def position(self, rank: int, owners: OwnerSet) -> int:
        """Returns the number of the chunk, of as many as there are owners, that a worker ends with."""
        result = 0
        for level in self.levels:
            members = level.members(rank, owners)
            result = result * len(members) + members.index(rank)
        return result


def make_levels(sets: Iterable[OwnerSet], workers: int, node_size: int) -> Levels:
    """Finds the levels for the owner sets of a plan.

    With at least as many nodes as classes, a node's workers are one class: they add up first, inside the node, and only
    parts of the sum leave it. With fewer nodes every node has all classes, and the exchange is inside the node.

    Args:
        sets: The owner sets of all units.
        workers: The number of workers N.
        node_size: The number of workers of each node; a divisor of N. Worker w is on node w // node_size.
    """
    found = worker_classes(sets, workers)
    grid = _grid(found, node_size)
    exchanges_first = _exchange(grid, node_size).in_node and _is_aligned(grid)
    if not exchanges_first:  # the n-th members of all groups across nodes then hold the same part, and exchange it
        grid = np.stack([blocks[np.argsort(blocks[:, 0])] for blocks in grid])
    exchange = _exchange(grid, node_size)
    inside = _level("class", grid.reshape(-1, grid.shape[2]), node_size)
    across = _level("class", grid.transpose(0, 2, 1).reshape(-1, grid.shape[1]), node_size)
    order = [inside, exchange, across] if exchanges_first else [inside, across, exchange]
    sizes = sorted(map(len, found))
    why = f"the classes have {sizes[0]} to {sizes[-1]} workers, which do not divide into equal parts"
    return Levels(
        tuple(level for level in order if level.size > 1),
        workers,
        node_size,
        tuple(tuple(sorted(members)) for members in grid.reshape(grid.shape[0], -1).tolist()),
        why if len(grid) == workers > len(found) else "",
    )


def _grid(classes: Sequence[Sequence[int]], node_size: int) -> Grid:
    """Returns the workers as an array of [class, block, worker], where a block is on one node.

    Classes of unequal sizes are split into the largest parts of equal size. What the parts of a class exchange, as if
    they were classes of their own, is the sum that they would otherwise have made first.
    """
    by_node = [_by_node(members, node_size) for members in classes]
    block = gcd(*(len(part) for parts in by_node for part in parts))
    # The first blocks of all nodes come before the second ones, so that the classes meet in the same node if they can.
    blocks = [
        [part[start : start + block] for start in range(0, node_size, block) for part in parts if start < len(part)]
        for parts in by_node
    ]
    height = gcd(*map(len, blocks))
    return np.array(list(chain.from_iterable(blocks)), dtype=np.int64).reshape(-1, height, block)


def _exchange(grid: Grid, node_size: int) -> Level:
    return _level("exchange", grid.transpose(1, 2, 0).reshape(-1, grid.shape[0]), node_size)


def _is_aligned(grid: Grid) -> bool:
    """Whether the classes have one order in the n-th groups of all nodes, so that a class ends with one part there."""
    order = np.argsort(grid, axis=0)
    return bool((order == order[:, :1]).all())


def _by_node(members: Sequence[int], node_size: int) -> list[list[int]]:
    """Splits ascending workers by their nodes."""
    result: dict[int, list[int]] = {}
    for worker in members:
        result.setdefault(worker // node_size, []).append(worker)
    return list(result.values())


def _level(kind: LevelKind, rows: Grid, node_size: int) -> Level:
    groups = sorted(tuple(sorted(row)) for row in rows.tolist())
    in_node = all(group[0] // node_size == group[-1] // node_size for group in groups)
    return Level(kind, tuple(groups), in_node)
