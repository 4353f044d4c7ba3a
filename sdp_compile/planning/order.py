"""The proof that collectives cannot wait for each other: the graph of their order has no circle.

The n-th collective of a group is one node for all its members, as communication libraries match them. Each worker
issues its collectives one after the other, which gives an edge from each to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import networkx as nx

from sdp_compile.errors import PlanError
from sdp_compile.ownership.owners import OwnerSet, is_member

Node: TypeAlias = tuple[OwnerSet, int]
"""The members of a group, and how many collectives it has had before."""

_MOST_SHOWN = 8
"""Workers and steps that an error names."""


@dataclass(frozen=True)
class Call:
    """A collective as one of its workers issues it.

    Attributes:
        members: The workers of the group, ascending.
        what: What it is called in errors: "round 3 of gradients, level 1".
        nbytes: For each member the bytes that it and this worker send each other; empty if they are not compared.
    """

    members: OwnerSet
    what: str
    nbytes: tuple[int, ...] = ()


def check_calls(calls: Mapping[int, Sequence[Call]]) -> None:
    """Checks that workers who issue these collectives in this order never wait for each other forever.

    Args:
        calls: The collectives of each worker in its order. Of workers that issue the same ones, one is enough.

    Raises:
        PlanError: If workers would be in different collectives of one group at the same time, if sizes differ, or if
            the order has a circle. The error names the workers and the collectives.
    """
    seen: dict[Node, dict[int, Call]] = {}
    graph: nx.DiGraph[Node] = nx.DiGraph()
    for worker, own in calls.items():
        issued: dict[OwnerSet, int] = {}
        before: Node | None = None
        for call in own:
            if not is_member(worker, call.members):
                raise PlanError(f"Worker {worker} issues {call.what} of workers {_shown(call.members)}, but is none.")
            node = call.members, issued.get(call.members, 0)
            issued[call.members] = node[1] + 1
            seen.setdefault(node, {})[worker] = call
            if before is not None:
                graph.add_edge(before, node, worker=worker)
            before = node
    for (members, _), of_node in seen.items():
        _check_alike(members, of_node, calls)
    if not nx.is_directed_acyclic_graph(graph):
        circle = nx.find_cycle(graph)
        steps = [
            f"worker {graph.edges[first, then]['worker']} issues {_named(first, seen)} before {_named(then, seen)}"
            for first, then in circle[:_MOST_SHOWN]
        ]
        workers = sorted({graph.edges[edge]["worker"] for edge in circle})
        raise PlanError(
            f"Workers {_shown(tuple(workers))} would wait for each other forever: {'; '.join(steps)}. All workers must "
            "issue the collectives of all groups in one order."
        )


def _check_alike(members: OwnerSet, of_node: Mapping[int, Call], calls: Mapping[int, Sequence[Call]]) -> None:
    some, call = next(iter(of_node.items()))
    for worker in members:
        if worker in calls and worker not in of_node:
            raise PlanError(
                f"Worker {worker} never issues {call.what} of workers {_shown(members)}, in which worker {some} would "
                "wait for it forever. All members of a group must issue its collectives."
            )
    for worker, other in of_node.items():
        if other.what != call.what:
            raise PlanError(
                f"In the group of workers {_shown(members)}, worker {worker} issues {other.what} where worker {some} "
                f"issues {call.what}. All members of a group must issue its collectives in one order."
            )
    sizes = {worker: dict(zip(members, one.nbytes, strict=False)) for worker, one in of_node.items() if one.nbytes}
    for one, other_worker in combinations(sizes, 2):
        sent, expected = sizes[one].get(other_worker), sizes[other_worker].get(one)
        if sent != expected:
            raise PlanError(
                f"In {call.what} of workers {_shown(members)}, worker {one} sends {sent} bytes to worker "
                f"{other_worker}, which expects {expected}. Both must have the same gradients in common."
            )


def _named(node: Node, seen: Mapping[Node, Mapping[int, Call]]) -> str:
    return f"{next(iter(seen[node].values())).what} (workers {_shown(node[0])})"


def _shown(workers: OwnerSet) -> str:
    return ", ".join(map(str, workers[:_MOST_SHOWN])) + (", ..." if len(workers) > _MOST_SHOWN else "")
