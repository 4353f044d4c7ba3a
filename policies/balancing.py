"""Dealing unequal units (blocks) to cells of workers: equal memory and FLOPs, exact numbers of owners."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from sdp_compile.structure.layout import Indices

Owned: TypeAlias = NDArray[np.bool_]
"""For each unit (row) the cells that own it."""

MOST_IMPROVED_CELLS = 64
"""Beyond, the greedy start is left as it is: with so many cells each holds a small sample of all units."""

PRICE_OF_CONNECTION = 1.02
"""How much the largest load may grow for joining cells that would never exchange anything."""


def balanced_cells(weights: NDArray[np.float64], shares: Indices, cells: int) -> Owned:
    """For each unit the cells that own it: exactly ``shares[unit]`` of them, every cell at least one unit.

    ``weights`` has one column per thing to balance. Longest-processing-time greedy, then exchanges between pairs of
    cells while they lower the sum of squared loads. Deterministic.
    """
    scaled = weights / np.maximum(weights.sum(axis=0), 1e-300)
    owned = _greedy(scaled, shares, cells)
    if cells <= MOST_IMPROVED_CELLS:
        while _improve(owned, scaled):
            pass
        while _connect(owned, scaled):
            pass
    return owned


def _greedy(weights: NDArray[np.float64], shares: Indices, cells: int) -> Owned:
    """Heaviest units first, each to the least loaded cells; among equals to those that share least with one another.

    Without the second rule equal blocks would go to the same pairs of workers again and again, and the workers fall
    into groups that never exchange anything.
    """
    owned = np.zeros((len(weights), cells), dtype=np.bool_)
    load, common = np.zeros(cells), np.zeros((cells, cells))
    for unit in np.argsort(-weights.sum(axis=1), kind="stable").tolist():
        chosen: list[int] = []
        for _ in range(int(shares[unit])):
            acquainted = common[chosen].sum(axis=0) if chosen else common.sum(axis=0)
            taken = np.isin(np.arange(cells), chosen)
            # Cells without a unit come first, whatever the weights: none may stay empty.
            order = np.lexsort((acquainted, np.round(load, 12), owned.any(axis=0), taken))
            chosen.append(int(order[0]))
        owned[unit, chosen] = True
        load[chosen] += weights[unit].sum()
        common[np.ix_(chosen, chosen)] += 1
        common[chosen, chosen] -= 1
    return owned


@dataclass(frozen=True)
class _Exchange:
    """``given`` moves from the first cell to the second, ``taken`` back; ``change`` is that of the squared loads."""

    first: int
    second: int
    given: int | None
    taken: int | None
    change: float

    def apply(self, owned: Owned) -> None:
        if self.given is not None:
            owned[self.given, [self.first, self.second]] = [False, True]
        if self.taken is not None:
            owned[self.taken, [self.first, self.second]] = [True, False]


def _best_exchange(
    owned: Owned, weights: NDArray[np.float64], first: int, second: int, swap: bool = False
) -> _Exchange:
    """The exchange that lowers the sum of squared loads most, or raises it least; with ``swap`` of one unit for one."""
    given = np.flatnonzero(owned[:, first] & ~owned[:, second])
    taken = np.flatnonzero(owned[:, second] & ~owned[:, first])
    difference = weights[owned[:, second]].sum(axis=0) - weights[owned[:, first]].sum(axis=0)
    # Row i, column j: given[i] moves to the second cell, taken[j] to the first; the last row and column stand for none.
    moved = np.vstack([weights[given], np.zeros(weights.shape[1])])[:, None]
    moved = moved - np.vstack([weights[taken], np.zeros(weights.shape[1])])[None]
    change = 2 * (moved**2).sum(axis=2) + 2 * (moved @ difference)
    if swap or owned[:, first].sum() == 1:
        change[:-1, -1] = np.inf
    if swap or owned[:, second].sum() == 1:
        change[-1, :-1] = np.inf
    if swap:
        change[-1, -1] = np.inf
    row, column = (int(number) for number in np.unravel_index(int(np.argmin(change)), change.shape))
    units = [int(given[row]) if row < len(given) else None, int(taken[column]) if column < len(taken) else None]
    return _Exchange(first, second, units[0], units[1], float(change[row, column]))


def _improve(owned: Owned, weights: NDArray[np.float64]) -> bool:
    """The best exchange of each pair of cells, in place; whether any lowered the sum of squared loads."""
    improved = False
    for first, second in combinations(range(owned.shape[1]), 2):
        exchange = _best_exchange(owned, weights, first, second)
        if exchange.change < -1e-12:
            exchange.apply(owned)
            improved = True
    return improved


def _connect(owned: Owned, weights: NDArray[np.float64]) -> bool:
    """One swap, in place, that joins groups of cells without a common unit at next to no cost; whether there was one.

    Workers of groups that share nothing would train their blocks on the data of their group only.
    """
    count, group = _groups(owned)
    if count == 1:
        return False
    limit = PRICE_OF_CONNECTION * _peak(owned, weights)
    apart = [pair for pair in combinations(range(owned.shape[1]), 2) if group[pair[0]] != group[pair[1]]]
    swaps = [_best_exchange(owned, weights, *pair, swap=True) for pair in apart]
    for swap in sorted(swaps, key=lambda swap: swap.change):
        trial = owned.copy()
        swap.apply(trial)
        if np.isfinite(swap.change) and _groups(trial)[0] < count and _peak(trial, weights) <= limit:
            owned[:] = trial
            return True
    return False


def _groups(owned: Owned) -> tuple[int, Indices]:
    """How many groups of cells share no unit with one another, and the group of each cell."""
    together = owned.T.astype(np.int64) @ owned.astype(np.int64)
    count, group = connected_components(csr_array(together), directed=False)
    return int(count), group


def _peak(owned: Owned, weights: NDArray[np.float64]) -> float:
    """The largest share of any cell in anything that is balanced."""
    return float((owned.T.astype(np.float64) @ weights).max())
