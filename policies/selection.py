"""Chooses the axes to cut: no two that meet in one parameter, and as many bytes saved as possible."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from sdp_compile.errors import PolicyError

TIE = 1e-7
"""Selections count as equal if their weights differ by less than this share of the total, the solver's tolerance."""


@dataclass(frozen=True)
class Candidate:
    """An axis that could be cut.

    Attributes:
        name: The name of the axis.
        weight: The bytes that the cut saves on the most loaded worker.
        outer: How many axes lie outside it in its dimension; 0 for the outermost.
    """

    name: str
    weight: float
    outer: int


def conflict_graph(names: Iterable[str], conflicts: Iterable[frozenset[str]]) -> nx.Graph[str]:
    """Returns a graph of axes with an edge where two meet in one parameter, and a loop where one meets itself."""
    graph: nx.Graph[str] = nx.Graph()
    graph.add_nodes_from(names)
    for pair in conflicts:
        first, *rest = sorted(pair)
        second = rest[0] if rest else first
        if first in graph and second in graph:
            graph.add_edge(first, second)
    return graph


def choose_disjoint(candidates: Collection[Candidate], conflicts: Iterable[frozenset[str]]) -> set[str]:
    """Returns a maximum-weight independent set of the conflict graph, without axes that conflict with themselves.

    Among equally good sets, it takes the one whose axes lie outermost, with the least sum of ``outer``. Among these, it
    takes the one whose names come first, with the least sum of positions in the sorted list of names.

    Args:
        candidates: The axes that could be cut.
        conflicts: Pairs of axes that meet in one parameter; a set of one axis that meets itself.

    Returns:
        The names of the chosen axes.
    """
    useful = {candidate.name: candidate for candidate in candidates if candidate.weight > 0}
    graph = conflict_graph(sorted(useful), conflicts)
    graph.remove_nodes_from(list(nx.nodes_with_selfloops(graph)))
    chosen: set[str] = set()
    for component in nx.connected_components(graph):
        names = sorted(component)
        chosen |= set(names) if len(names) == 1 else _independent(graph.subgraph(names), names, useful)
    return chosen


def _independent(graph: nx.Graph[str], names: list[str], candidates: Mapping[str, Candidate]) -> set[str]:
    weights = np.array([candidates[name].weight for name in names], dtype=np.float64)
    weights /= weights.max()
    position = {name: number for number, name in enumerate(names)}
    edges = np.array([[position[first], position[second]] for first, second in graph.edges], dtype=np.int64)
    rows = np.repeat(np.arange(len(edges)), 2)
    apart = csr_array((np.ones(2 * len(edges)), (rows, edges.reshape(-1))), shape=(len(edges), len(names)))
    best = _solve(-weights, [LinearConstraint(apart, ub=1)])
    enough = LinearConstraint(weights[None, :], lb=float(weights @ best) - TIE * float(weights.sum()))
    count = len(names)
    # Summed over all names, positions weigh less than a difference of one in `outer`.
    inside = np.array([candidates[name].outer for name in names], dtype=np.float64)
    preference = inside + np.arange(count) / (count * count)
    chosen = _solve(preference, [LinearConstraint(apart, ub=1), enough])
    return {name for name, taken in zip(names, chosen, strict=True) if taken}


def _solve(cost: NDArray[np.float64], constraints: list[LinearConstraint]) -> NDArray[np.bool_]:
    """Returns the binary vector of least cost."""
    result = milp(
        cost, constraints=constraints, bounds=Bounds(0, 1), integrality=np.ones(len(cost)), options={"mip_rel_gap": 0.0}
    )
    if result.x is None:
        raise PolicyError(f"Choosing the axes to cut failed: {result.message} Use axes='all', or choose with rules.")
    return np.asarray(result.x > 0.5)
