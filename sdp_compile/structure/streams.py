"""The axes along the residual stream: those that fork before a residual add and meet again in it.

A sum of two branches is not enough. ``W x + B A x`` adds two layers that read the same input: its axis begins at both
of them. In ``x + f(x)`` the axis of the sum is that of ``x``, which the branch reads too.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection

import torch
from torch import fx

from sdp_compile.ir.effects import Effects
from sdp_compile.structure.axes import Axis

AxesOf = Callable[[fx.Node], Collection[Axis]]


def stream_axes(graph: fx.Graph, adds: Collection[str], axes_of: AxesOf) -> set[Axis]:
    """Returns the axes along the residual stream of one graph.

    Args:
        graph: The graph.
        adds: The names of its residual adds.
        axes_of: Gives the axes of a node's value.
    """
    search = _Search(Effects(graph), axes_of)
    found: set[Axis] = set()
    for add in graph.nodes:
        if add.name in adds:
            found |= {axis for axis in axes_of(add) if axis not in found and search.forks(add, axis)}
    return found


class _Search:
    def __init__(self, effects: Effects, axes_of: AxesOf) -> None:
        self.effects = effects
        self.axes_of = axes_of
        self.activations: set[fx.Node] = set()
        for node in effects.nodes:
            depends = node.op == "placeholder" or any(source in self.activations for source in effects.sources(node))
            if depends and isinstance(node.meta.get("val"), torch.Tensor | tuple | list):
                self.activations.add(node)

    def forks(self, add: fx.Node, axis: Axis) -> bool:
        """Whether the axis reaches one operand, unbroken, from a value that the other operand is computed from too."""
        position = self.effects.position
        feeds: dict[fx.Node, set[int]] = {}  # the operands that a node is an ancestor of
        carries: dict[fx.Node, set[int]] = {}  # those that it hands the axis on to
        queue: list[tuple[int, fx.Node]] = []

        def reach(node: fx.Node, fed: set[int], carried: set[int]) -> None:
            if node not in self.activations:
                return
            if node not in feeds:
                heapq.heappush(queue, (-position[node], node))
            feeds.setdefault(node, set()).update(fed)
            if carried and axis in self.axes_of(node):
                carries.setdefault(node, set()).update(carried)

        for number, operand in enumerate(add.args[:2]):
            if isinstance(operand, fx.Node):
                reach(operand, {number}, {number})
        while queue and carries:
            _, node = heapq.heappop(queue)
            carried = carries.pop(node, set())
            if carried and len(feeds[node]) > 1:
                return True
            for source in self.effects.sources(node):
                reach(source, feeds[node], carried)
        return False
