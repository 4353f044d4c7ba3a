"""The terms of a sum, and the nodes that nothing but some terms needs."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from sdp_compile.ir.effects import Effects
from sdp_compile.ir.program import StateTensor
from sdp_compile.structure.blocks.additions import Addend, Addition


@dataclass(frozen=True)
class Region:
    """The nodes that only some terms need, in the order of the graph.

    ``boundary`` holds the activations that feed the nodes, ``parameters`` the names that they read.
    """

    nodes: tuple[fx.Node, ...]
    boundary: frozenset[fx.Node]
    parameters: frozenset[str]


@dataclass(frozen=True, eq=False)
class Term:
    """One addend of an addition, which takes part in the flattened sum ``total``.

    Its region is empty where its value is used elsewhere too; that value is then the boundary.
    """

    addition: Addition
    addend: Addend
    total: fx.Node
    region: Region

    @cached_property
    def factors(self) -> tuple[fx.Node, ...]:
        """The factors, activations first."""
        return tuple(sorted(self.addend.factors, key=lambda factor: factor.op == "get_attr"))

    @property
    def parameters(self) -> frozenset[str]:
        """The names of the parameters that the region reads."""
        return self.region.parameters

    @property
    def boundary(self) -> frozenset[fx.Node]:
        """The activations that feed the region."""
        return self.region.boundary


def exits(addends: Iterable[tuple[Addition, Addend]], effects: Effects) -> dict[fx.Node, set[fx.Node]]:
    """For each node that reads some of these addends: what it reads for them alone."""
    ours: dict[fx.Node, tuple[Addition, set[int]]] = {}
    for addition, addend in addends:
        ours.setdefault(addition.reader, (addition, set()))[1].update(
            number for number, other in enumerate(addition.addends) if other is addend
        )
    result = {}
    for reader, (addition, numbers) in ours.items():
        mine: set[fx.Node] = set()
        theirs = set(effects.stale.get(reader, ()))  # since overwritten: not the value of the node
        for number, addend in enumerate(addition.addends):
            (mine if number in numbers else theirs).update(addend.factors)
        result[reader] = mine - theirs
    return result


def grow(
    addends: Sequence[tuple[Addition, Addend]],
    effects: Effects,
    activations: Collection[fx.Node],
    state: Mapping[str, StateTensor],
) -> Region:
    """Returns the region of addends, grown backwards: a node belongs to it when all its readers do.

    Args:
        addends: The addends with their additions. For its readers, a node may end in any of these.
        effects: The true readers of the nodes.
        activations: The nodes that may be on the boundary.
        state: The state tensors by name.
    """
    out = exits(addends, effects)
    readers, position = effects.readers, effects.position
    region: set[fx.Node] = set()
    boundary: set[fx.Node] = set()
    parameters: set[str] = set()
    seen = {factor for _, addend in addends for factor in addend.factors}
    queue = [(-position[node], node) for node in seen]
    heapq.heapify(queue)
    while queue:
        _, node = heapq.heappop(queue)
        if node.op == "get_attr" and state[str(node.target)].kind == "parameter":
            parameters.add(str(node.target))
        if node.op == "placeholder" or not all(r in region or node in out.get(r, ()) for r in readers[node]):
            if node in activations:
                boundary.add(node)
            continue
        region.add(node)
        for source in effects.sources(node):
            if source not in seen:
                seen.add(source)
                heapq.heappush(queue, (-position[source], source))
    return Region(tuple(sorted(region, key=position.__getitem__)), frozenset(boundary), frozenset(parameters))


def feeding(sources: Iterable[fx.Node], nodes: Iterable[fx.Node], effects: Effects) -> dict[fx.Node, set[fx.Node]]:
    """Returns the sources that feed one of the nodes, each with the nodes met on the way back to it."""
    position = effects.position
    wanted = set(sources)
    lowest = min((position[source] for source in wanted), default=len(position))
    queue = [(-position[node], node) for node in set(nodes)]
    heapq.heapify(queue)
    seen = {node for _, node in queue}
    found: dict[fx.Node, set[fx.Node]] = {}
    while queue and -queue[0][0] >= lowest:
        _, node = heapq.heappop(queue)
        if node in wanted:
            found[node] = seen
            continue  # what lies before a skip path feeds it, not the branch
        for source in effects.sources(node):
            if source not in seen:
                seen.add(source)
                heapq.heappush(queue, (-position[source], source))
    return found
