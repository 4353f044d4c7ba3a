"""Designs place units on workers. A new design is one function with the `design` decorator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from scipy.optimize import brentq

from sdp_compile.errors import PolicyError
from sdp_compile.ownership.owners import Ownership, runs_of
from sdp_compile.policies.balancing import balanced_cells
from sdp_compile.policies.placement import Placement, workers_of
from sdp_compile.structure.layout import Indices

Design: TypeAlias = Callable[[Sequence[Placement]], list[Ownership]]
"""A design takes the placements of several families and returns the ownership of each.

It sees several families at once, so that it can balance over all of them what one family leaves uneven.
"""

_DESIGNS: dict[str, Design] = {}


def design(name: str) -> Callable[[Design], Design]:
    """Registers the decorated function as a design.

    Args:
        name: The name of the design, as a value of the policies' ``design`` field.

    Returns:
        A decorator that registers a function and returns it.

    Raises:
        PolicyError: There is already a design of this name.
    """

    def register(function: Design) -> Design:
        if name in _DESIGNS:
            raise PolicyError(f"There is already a design {name!r}.")
        _DESIGNS[name] = function
        return function

    return register


def designs() -> dict[str, Design]:
    """Returns all designs by name."""
    return dict(_DESIGNS)


@design("cyclic")
def cyclic(placements: Sequence[Placement]) -> list[Ownership]:
    """Gives slot s to the p cells s to s + p - 1. Loads are equal, slices contiguous, and each worker is in few groups.

    Args:
        placements: The families to place.

    Returns:
        The ownership of each family.
    """
    return [_rotated(placement, 0) for placement in placements]


@design("balanced")
def balanced(placements: Sequence[Placement]) -> list[Ownership]:
    """Balances memory and FLOPs over the workers, for units that are unequal or few. Each unit has exactly P owners.

    Blocks are dealt one by one. An axis keeps the slots of `cyclic`, rotated to balance what earlier axes left uneven:
    3 heads over 4 workers, for example, load one worker more in every layer.

    Args:
        placements: The families to place.

    Returns:
        The ownership of each family.
    """
    rotated = iter(_rotated_evenly([placement for placement in placements if placement.kind == "axis"]))
    return [_dealt(placement) if placement.kind == "block" else next(rotated) for placement in placements]


@design("random")
def random(placements: Sequence[Placement]) -> list[Ownership]:
    """Deals units to slots at random, and slots to random cells. All cells own equally many slots.

    The owner sets of the slots are drawn once for all families, so that there are few groups. The units of each slot
    are drawn for each family. The same ``seed`` gives the same result.

    Args:
        placements: The families to place.

    Returns:
        The ownership of each family.
    """
    return [_drawn(placement) for placement in placements]


@design("rolling")
def rolling(placements: Sequence[Placement]) -> list[Ownership]:
    """Places units as `cyclic` places those ``seed`` groups of ``align`` units further on.

    With each seed, slots move on by one group of units, and other units come together. In blocks, the owners of
    `balanced` move on by one block.

    Args:
        placements: The families to place.

    Returns:
        The ownership of each family.

    Source: FedRolex, arXiv 2212.01548, which moves a window over the units of each layer.
    """
    return [_rolled(placement) for placement in placements]


@design("nested")
def nested(placements: Sequence[Placement]) -> list[Ownership]:
    """Gives each cell a prefix of the units. The widths fall geometrically from 1, and their mean is the coverage.

    This is for unequal workers, as in HeteroFL (arXiv 2010.01264). All workers own the first units. Only cell 0, which
    owns the full model, owns the last ones. Any set of units has a common owner.

    Args:
        placements: The families to place.

    Returns:
        The ownership of each family.
    """
    return [_prefixes(placement) for placement in placements]


@design("core")
def core(placements: Sequence[Placement]) -> list[Ownership]:
    """Gives the first units to all cells, and each other unit to one cell, so that the mean coverage is that asked for.

    The core trains beside everything. With as many cells as workers, gradients of the others are not sent at all.

    Args:
        placements: The families to place.

    Returns:
        The ownership of each family.
    """
    return [_cored(placement) for placement in placements]


def _rotated(placement: Placement, rotation: int) -> Ownership:
    """Gives each unit the ``share`` cells from its slot onwards, all rotated by ``rotation`` cells."""
    labels = placement.slot_of_units() * (placement.slots + 1) + placement.shares
    return _from_cell(placement.workers, placement.slots, placement.stride, tuple(runs_of(labels)), rotation)


@lru_cache(maxsize=256)
def _from_cell(workers: int, slots: int, stride: int, labels: tuple[tuple[int, int], ...], rotation: int) -> Ownership:
    """Builds an ownership from runs of (units, first cell x (slots + 1) + share). Equal layers get the same object."""
    result = []
    for units, label in labels:
        first, share = divmod(label, slots + 1)
        cells = frozenset((first + rotation + step) % slots for step in range(share))
        result.append((units, workers_of(cells, slots, workers, stride)))
    return Ownership.from_runs(result)


def _rotated_evenly(axes: Sequence[Placement]) -> list[Ownership]:
    """Rotates each axis to keep the load of the most loaded worker lowest, given the axes before it."""
    if not axes:
        return []
    scale = 1 / np.maximum(sum(placement.weights.sum(axis=0) for placement in axes), 1e-300)
    load = np.zeros((axes[0].workers, 2))
    result = []
    for placement in axes:
        unrotated = _rotated(placement, 0)
        columns = [unrotated.loads(column, placement.workers) for column in (placement.weights * scale).T]
        own = np.stack(columns, axis=1)
        # K x stride divides N, so rotating the cells by one rotates the loads of the workers by one stride.
        candidates = [np.roll(own, rotation * placement.stride, axis=0) for rotation in range(placement.slots)]
        peaks = [round(float((load + candidate).max()), 12) for candidate in candidates]
        best = peaks.index(min(peaks))
        load = load + candidates[best]
        result.append(_rotated(placement, best))
    return result


def _dealt(placement: Placement) -> Ownership:
    cells = balanced_cells(placement.weights, placement.shares, placement.slots)
    return Ownership.from_runs((1, placement.owners(np.flatnonzero(row).tolist())) for row in cells)


def _rolled(placement: Placement) -> Ownership:
    _equal_share(placement, "rolling")
    if placement.kind == "block":
        cells = balanced_cells(placement.weights, placement.shares, placement.slots)
        cells = np.roll(cells, -placement.seed, axis=0)
        return Ownership.from_runs((1, placement.owners(np.flatnonzero(row).tolist())) for row in cells)
    slots = np.roll(placement.slot_of_units(), -placement.seed * placement.align)
    labels = slots * (placement.slots + 1) + placement.shares
    return _from_cell(placement.workers, placement.slots, placement.stride, tuple(runs_of(labels)), 0)


def _equal_share(placement: Placement, design: str) -> int:
    """Returns how many cells own each unit; an error if units differ."""
    shares = set(placement.shares.tolist())
    if len(shares) > 1:
        raise PolicyError(
            f"design={design!r} places all units alike, but those of {placement.family!r} have different numbers of "
            "owners. Use design='random', or leave out the rules that give them these."
        )
    return int(shares.pop())


def _drawn(placement: Placement) -> Ownership:
    count = min(placement.units, placement.slots)
    if placement.kind == "block":  # blocks are few and have their own shares: every block is a slot
        sets = _draw_sets(placement, placement.shares)
        return Ownership.from_runs((1, placement.owners(np.flatnonzero(row).tolist())) for row in sets)
    sets = _draw_sets(placement, np.full(count, placement.shares[0], dtype=np.int64))
    groups = -(-placement.units // placement.align)
    align, groups = (placement.align, groups) if groups >= count else (1, placement.units)
    slots = np.arange(groups, dtype=np.int64) * count // groups
    shuffled = _generator(placement.seed, placement.family).permutation(slots)
    owners = [placement.owners(np.flatnonzero(row).tolist()) for row in sets]
    labels = np.repeat(shuffled, align)[: placement.units]
    return Ownership.from_runs((1, owners[slot]) for slot in labels.tolist())


def _draw_sets(placement: Placement, shares: Indices) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """Draws for each slot ``share`` cells at random among those that own fewest slots so far."""
    generator = _generator(placement.seed, f"{placement.slots} cells")
    load = np.zeros(placement.slots, dtype=np.int64)
    result = np.zeros((len(shares), placement.slots), dtype=np.bool_)
    for slot, share in enumerate(shares.tolist()):
        shuffled = generator.permutation(placement.slots)
        chosen = shuffled[np.argsort(load[shuffled], kind="stable")[:share]]
        result[slot, chosen] = True
        load[chosen] += 1
    return result


def _generator(seed: int, purpose: str) -> np.random.Generator:
    """Returns a separate random stream for each purpose. Python's hash() would differ between processes."""
    digest = sha256(f"{seed} {purpose}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _prefixes(placement: Placement) -> Ownership:
    mean = float(_equal_share(placement, "nested"))
    widths = np.maximum(1, np.floor(_geometric(placement.slots, mean) * placement.units + 0.5)).astype(np.int64)
    bounds = [0, *sorted(set(widths.tolist()))]
    return Ownership.from_runs(
        (stop - start, placement.owners(np.flatnonzero(widths >= stop).tolist())) for start, stop in pairwise(bounds)
    )


def _cored(placement: Placement) -> Ownership:
    cells, mean = placement.slots, _equal_share(placement, "core")
    align = placement.align if placement.units >= placement.align * cells else 1
    groups = -(-placement.units // align)
    core = round(groups * (mean - 1) / (cells - 1)) if cells > 1 else groups
    owners = [placement.owners(range(cells))] * core
    owners += [placement.owners([private * cells // (groups - core)]) for private in range(groups - core)]
    labels = np.repeat(np.arange(groups), align)[: placement.units]
    return Ownership.from_runs((1, owners[label]) for label in labels.tolist())


def _geometric(count: int, total: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Returns ``count`` widths 1, x, x^2, ... with the sum ``total``, which lies between 1 and ``count``."""
    powers = np.arange(count, dtype=np.float64)
    if total >= count:
        return np.ones(count)
    ratio = brentq(lambda x: float((x**powers).sum()) - total, 0.0, 1.0) if total > 1 else 0.0
    return np.asarray(ratio**powers)
