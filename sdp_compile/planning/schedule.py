"""Which collectives each worker issues in one step of training, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import numpy as np

from sdp_compile.errors import PlanError
from sdp_compile.ownership.levels import Level, Levels
from sdp_compile.ownership.owners import OwnerSet
from sdp_compile.planning.buckets import Bucket
from sdp_compile.planning.order import Call, check_calls


def turns(rounds: int, depth: int) -> Iterator[tuple[int, int, int]]:
    """Yields (turn, round, step) in the order in which all workers issue the steps of their rounds.

    When a round is complete its first step is issued, then the second one of the round before it, and so on. At the
    end everything is issued that is left.

    Args:
        rounds: The number of rounds.
        depth: The number of steps of each round.
    """
    for turn in range(rounds + depth - 1 if rounds and depth else 0):
        for number in range(min(turn, rounds - 1), max(0, turn - depth + 1) - 1, -1):
            yield turn, number, turn - number


def check_order(
    levels: Levels,
    classes: Sequence[Sequence[int]],
    exchanges: Sequence[bool],
    buckets: Callable[[int], Sequence[Bucket]],
) -> None:
    """Proves that workers cannot wait for each other forever; see `sdp_compile.planning.order`.

    Workers of one class issue the same collectives, each in its own groups. So one worker of each class stands for all:
    a circle among many workers would be one among the classes, too.

    Args:
        levels: The levels of the plan.
        classes: The workers, grouped by what they own.
        exchanges: For each round, whether workers of different classes have something in common in it.
        buckets: Returns the buckets of a worker.

    Raises:
        PlanError: If they could. The error names the workers and the collectives.
    """
    check_calls({rank: calls(levels, rank, exchanges, buckets(rank)) for rank in _representatives(levels, classes)})


def calls(levels: Levels, rank: int, exchanges: Sequence[bool], buckets: Sequence[Bucket]) -> list[Call]:
    """Returns the collectives in which a worker averages its gradients in one step, in its order.

    With NCCL, a collective among workers that own the same is one for each dtype.

    Args:
        levels: The levels of the plan.
        rank: The worker.
        exchanges: For each round, whether workers of different classes have something in common in it.
        buckets: Its buckets.
    """
    there = [(number, "sum") for number in range(len(levels))]
    back = [(number, "average") for number in reversed(range(len(levels)))]
    # Nothing happens between the two steps of a last level whose workers own the same.
    steps = there + (back[1:] if levels and levels[-1].kind == "class" else back)
    held: dict[int, list[Bucket]] = {}
    for bucket in buckets:
        held.setdefault(bucket.round, []).append(bucket)
    sizes = {number: _sizes(levels, rank, of_round) for number, of_round in held.items()}
    nothing = [(0,) * level.size for level in levels]
    result = []
    for _, number, step in turns(len(exchanges), len(steps)):
        place, direction = steps[step]
        level = levels[place]
        if exchanges[number] if level.kind == "exchange" else number in held:
            what = f"the {direction} of round {number} at level {place}"
            result.append(Call(level.group(rank), what, sizes.get(number, nothing)[place]))
    return result


def _sizes(levels: Levels, rank: int, buckets: Sequence[Bucket]) -> list[tuple[int, ...]]:
    """Returns for each level the bytes that a worker and each member of its group send each other, one way."""
    places = [{member: place for place, member in enumerate(level.group(rank))} for level in levels]
    sizes = [[0] * level.size for level in levels]
    members: dict[tuple[int, OwnerSet], list[int]] = {}
    for bucket in buckets:
        nbytes = bucket.chunk * len(bucket.owners) * bucket.dtype.itemsize
        for number, level in enumerate(levels):
            key = number, bucket.owners
            if key not in members:
                members[key] = [places[number][member] for member in level.members(rank, bucket.owners)]
            nbytes //= max(1, len(members[key]))
            for place in members[key]:
                sizes[number][place] += nbytes
    return [tuple(of_level) for of_level in sizes]


def _representatives(levels: Levels, classes: Sequence[Sequence[int]]) -> OwnerSet:
    """Returns one worker of each class, which exchange with each other; all workers if groups have other classes."""
    numbers = np.empty(levels.workers, dtype=np.int64)
    for number, members in enumerate(classes):
        numbers[members] = number
    alike = True
    for level in levels:
        _check_groups(level, levels.workers)
        groups = np.asarray(level.groups)
        of_groups = np.sort(numbers[groups], axis=1)
        if level.kind == "exchange":
            alike = alike and not (of_groups != of_groups[0]).any()
            continue
        for group in groups[(of_groups != of_groups[:, :1]).any(axis=1)][:1]:
            other = group[numbers[group] != numbers[group[0]]][0]
            raise PlanError(
                f"Workers {group[0]} and {other} are in one group of a level that adds up whole subnetworks, but own "
                "different units, so that wrong gradients would be added. Put workers that own the same into it."
            )
    if (
        len(levels) == 1 and len(levels[0].groups) == 1
    ):  # all collectives are in one group, and every worker is in each of them
        return levels[0].group(0)[:2]
    return levels.exchange_group(0) if alike else tuple(range(levels.workers))


def _check_groups(level: Level, workers: int) -> None:
    found = np.bincount(np.fromiter(chain.from_iterable(level.groups), np.int64), minlength=workers)
    for worker in np.flatnonzero(found != 1)[:1].tolist():
        where = f"{found[worker]} groups" if found[worker] else "no group"
        raise PlanError(
            f"Worker {worker} is in {where} of a level of {level.size} workers per group. The groups of a level must "
            "be disjoint and have all workers."
        )
