"""Figures of all owner sets together: owners per element, and how fast the workers' copies mix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import eigsh

from sdp_compile.ownership.owners import OwnerSet, worker_classes

DENSE_EIGENSOLVER_LIMIT = 1000
"""With more worker classes than this, only the two largest eigenvalues are computed, by Lanczos iteration."""


@dataclass(frozen=True)
class Coverage:
    """The number of owners per parameter element.

    Attributes:
        min: The smallest number of owners of any element.
        mean: The mean over all elements.
        max: The largest number of owners of any element.
        cut: The same figures for the elements that some family cuts, or None if there are none.
    """

    min: int
    mean: float
    max: int
    cut: Coverage | None = None


@dataclass(frozen=True)
class Redundancy:
    """How many owners each cut parameter has at least, and on how many nodes.

    Attributes:
        workers: The smallest number of workers that own any element of a cut parameter.
        nodes: The smallest number of nodes on which these owners are.
    """

    workers: int
    nodes: int

    @property
    def spare_workers(self) -> int:
        """So many workers, whichever they are, can be lost: every unit still has an owner."""
        return self.workers - 1

    @property
    def spare_nodes(self) -> int:
        """So many nodes, whichever they are, can be lost: every unit still has an owner."""
        return self.nodes - 1


def redundancy(elements: Mapping[OwnerSet, int], workers: int, node_size: int) -> Redundancy:
    """Returns the smallest number of owners of any element, and of nodes that have owners of it.

    Args:
        elements: The number of elements of each owner set, without those that all workers own.
        workers: The number of workers.
        node_size: The number of workers of each node.
    """
    sets = [np.asarray(owners) for owners, count in elements.items() if count and owners]
    return Redundancy(
        min((len(owners) for owners in sets), default=workers),
        min((len(np.unique(owners // node_size)) for owners in sets), default=workers // node_size),
    )


def coverage(elements: Mapping[OwnerSet, int], cut: Mapping[OwnerSet, int]) -> Coverage:
    """Returns the number of owners per element.

    Args:
        elements: The number of elements of each owner set.
        cut: The same, for the elements that some family cuts.
    """
    return _coverage(elements, _coverage(cut) if sum(cut.values()) else None)


def _coverage(elements: Mapping[OwnerSet, int], cut: Coverage | None = None) -> Coverage:
    counts = [(len(owners), count) for owners, count in elements.items() if count]
    if not counts:
        return Coverage(0, 0.0, 0, cut)
    mean = sum(owners * count for owners, count in counts) / sum(count for _, count in counts)
    return Coverage(min(counts)[0], mean, max(counts)[0], cut)


def spectral_gap(elements: Mapping[OwnerSet, int], workers: int) -> float:
    """Returns 1 minus the second largest eigenvalue of the workers' averaging matrix, and 1 if nothing is cut.

    The matrix W is the mean, over the elements, of the matrix that averages over the element's owners and leaves all
    other workers as they are. This is the expected gossip step of a random element (Boyd et al., "Randomized Gossip
    Algorithms", 2006). W is symmetric and doubly stochastic. The gap is 0 exactly when the workers fall into groups
    that share no cut element, and 1 under full replication.

    Args:
        elements: The number of elements of each owner set, without those that all workers own.
        workers: The number of workers.
    """
    total = sum(elements.values())
    if workers == 1 or not total:
        return 1.0
    classes = worker_classes(elements, workers)
    sizes = np.array([len(members) for members in classes], dtype=np.float64)
    share, quotient = np.zeros(len(classes)), np.zeros((len(classes), len(classes)))
    for owners, count in elements.items():
        holders = set(owners)
        held = np.array([members[0] in holders for members in classes])
        share[held] += count / total
        scaled = np.sqrt(sizes[held])
        quotient[np.ix_(held, held)] += count / total / len(owners) * np.outer(scaled, scaled)
    quotient[np.diag_indices_from(quotient)] += 1 - share
    # On vectors that are constant within each class, W acts as the quotient. On vectors that sum to 0 within one class
    # of several workers, it multiplies by the share of the elements that the class does not own.
    within = [1 - float(share[number]) for number, size in enumerate(sizes) if size > 1]
    return float(np.clip(1 - max([_second_largest(quotient), *within]), 0.0, 1.0))


def _second_largest(matrix: NDArray[np.float64]) -> float:
    size = len(matrix)
    if size == 1:
        return 0.0
    if size <= DENSE_EIGENSOLVER_LIMIT:
        return float(np.linalg.eigvalsh(matrix)[-2])
    values = eigsh(matrix, k=2, which="LA", return_eigenvectors=False, v0=np.ones(size))
    return float(min(values))
