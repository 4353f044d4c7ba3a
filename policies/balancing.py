"""Deals unequal units, such as blocks, to cells of workers with equal memory and FLOPs and exact numbers of owners."""

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
"""For each unit (row) and each cell (column), whether the cell owns the unit."""

MOST_IMPROVED_CELLS = 64
"""With more cells than this, the greedy start is not improved: each cell holds a small sample of all units anyway."""

PRICE_OF_CONNECTION = 1.02
"""How much the largest load may grow to connect cells that would otherwise never exchange anything."""


def balanced_cells(weights: NDArray[np.float64], shares: Indices, cells: int) -> Owned:
    """Gives each unit its number of cells, and each cell at least one unit, with balanced loads. Deterministic.

    Starts with the longest-processing-time greedy algorithm, then exchanges units between pairs of cells while this
    lowers the sum of squared loads.

    Args:
        weights: One row per unit, one column per quantity to balance.
        shares: The number of cells that are to own each unit.
        cells: The number of cells.

    Returns:
        For each unit (row) and cell (column), whether the cell owns the unit.
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
    """Deals the heaviest units first, each to the least loaded cells. Ties go to cells that share the fewest units.

    Without that rule for ties, equal blocks would go to the same pairs of workers again and again, and the workers
    would fall into groups that never exchange anything.
    """
    owned = np.zeros((len(weights), cells), dtype=np.bool_)
    load, common = np.zeros(cells), np.zeros((cells, cells))
    for unit in np.argsort(-weights.sum(axis=1), kind="stable").tolist():
        chosen: list[int] = []
        for _ in range(int(shares[unit])):
            acquainted = common[chosen].sum(axis=0) if chosen else common.sum(axis=0)
            taken = np.isin(np.arange(cells), chosen)
            # Cells without a unit come first, so that none stays empty.
            order = np.lexsort((acquainted, np.round(load, 12), owned.any(axis=0), taken))
            chosen.append(int(order[0]))
        owned[unit, chosen] = True
        load[chosen] += weights[unit].sum()
        common[np.ix_(chosen, chosen)] += 1
        common[chosen, chosen] -= 1
    return owned


@dataclass(frozen=True)
class _Exchange:
    """Moves ``given`` from the first cell to the second and ``taken`` back; the squared loads change by ``change``."""

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
    """Returns the exchange with the least sum of squared loads. A ``swap`` trades one unit for one."""
    given = np.flatnonzero(owned[:, first] & ~owned[:, second])
    taken = np.flatnonzero(owned[:, second] & ~owned[:, first])
    difference = weights[owned[:, second]].sum(axis=0) - weights[owned[:, first]].sum(axis=0)
    # In row i and column j, given[i] moves to the second cell and taken[j] to the first. The last ones move nothing.
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
    """Applies the best exchange of each pair of cells, in place. Returns whether any lowered the squared loads."""
    improved = False
    for first, second in combinations(range(owned.shape[1]), 2):
        exchange = _best_exchange(owned, weights, first, second)
        if exchange.change < -1e-12:
            exchange.apply(owned)
            improved = True
    return improved


def _connect(owned: Owned, weights: NDArray[np.float64]) -> bool:
    """Applies a swap that joins two groups of cells without a common unit, in place. Returns whether it found one.

    The swap may raise the largest load by `PRICE_OF_CONNECTION`. Without it, each group would train its blocks on its
    own data only.
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
    """Returns the number of groups of cells that share no unit, and the group of each cell."""
    together = owned.T.astype(np.int64) @ owned.astype(np.int64)
    count, group = connected_components(csr_array(together), directed=False)
    return int(count), group


def _peak(owned: Owned, weights: NDArray[np.float64]) -> float:
    """Returns the largest load of any cell in any quantity."""
    return float((owned.T.astype(np.float64) @ weights).max())
