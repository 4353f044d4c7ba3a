"""What the nodes of a graph read, write and alias.

ATen graphs hold in-place operators, so an edge of the graph is not the whole truth: a node that reads ``x`` after
``relu_(x)`` depends on ``relu_`` although no edge says so. `Effects` adds those edges.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sdp_compile.ir.schema import aliased_values, written_values


def tensor_value(node: fx.Node) -> torch.Tensor | None:
    """Returns the fake tensor of a node, None for numbers, symbolic sizes and tuples."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def shape_text(value: torch.Tensor) -> tuple[str, ...]:
    """Returns sizes as text; comparing symbolic sizes themselves would add guards."""
    return tuple(str(size) for size in value.shape)


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def written_inputs(node: fx.Node) -> list[fx.Node]:
    """Returns the inputs whose storage the node overwrites."""
    if node.op != "call_function":
        return []
    if node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv):
        return _nodes_in(node.args[0])
    return _nodes_in(written_values(node))


def aliased_inputs(node: fx.Node) -> list[fx.Node]:
    """Returns the inputs whose storage the node's result may share."""
    if node.op != "call_function":
        return list(node.all_input_nodes) if node.op in ("call_module", "call_method") else []
    if node.target is operator.getitem:
        return _nodes_in(node.args[0])
    if isinstance(node.target, torch._ops.OpOverload):
        return _nodes_in(aliased_values(node))
    if "val" in node.meta and not isinstance(node.meta["val"], torch.Tensor | tuple | list):
        return []  # arithmetic on sizes
    return list(node.all_input_nodes)  # a higher-order operator: nothing is known


class Effects:
    """The positions, storages and true readers of all nodes of one graph.

    ``storage[node]`` names the storage that the node may share with others by its first node. ``stale[node]`` maps an
    input of the node that has been overwritten since it was made to the last node that wrote to it.
    ``readers[node]`` are the nodes that depend on the node's value or on what it wrote, dead ones left out.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = list(graph.nodes)
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self.storage: dict[fx.Node, fx.Node] = {}
        self._join_storages()
        self.external = {self.storage[node] for node in self.nodes if node.op == "placeholder"}
        self.state = {self.storage[node] for node in self.nodes if node.op == "get_attr"}
        self.writers: dict[fx.Node, list[fx.Node]] = {}
        self.stale: dict[fx.Node, dict[fx.Node, fx.Node]] = {}
        self._order_reads_and_writes()
        self.live = live_nodes(self, lambda name: True)
        self.readers: dict[fx.Node, set[fx.Node]] = {node: set() for node in self.nodes}
        for node in self.live:
            for source in self.sources(node):
                self.readers[source].add(node)
        for storage in self.external:
            for writer in self.writers.get(storage, ()):
                self.readers[writer].add(self.nodes[-1])  # the caller sees what was written to its tensor

    def _join_storages(self) -> None:
        parent: dict[fx.Node, fx.Node] = {}

        def find(node: fx.Node) -> fx.Node:
            while parent[node] is not node:
                parent[node] = node = parent[parent[node]]
            return node

        for node in self.nodes:
            parent[node] = node
            for source in aliased_inputs(node):
                roots = sorted((find(source), find(node)), key=self.position.__getitem__)
                parent[roots[1]] = roots[0]
        self.storage = {node: find(node) for node in self.nodes}

    def _order_reads_and_writes(self) -> None:
        for node in self.nodes:
            for source in node.all_input_nodes:
                storage = self.storage[source]
                # Statistics that several normalisations share order nothing: blocks look at them by name.
                writers = () if storage in self.state else self.writers.get(storage, ())
                if writers and self.position[writers[-1]] > self.position[source]:
                    self.stale.setdefault(node, {})[source] = writers[-1]
            for target in written_inputs(node):
                self.writers.setdefault(self.storage[target], []).append(node)

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Returns all nodes that the node's value depends on directly."""
        return [*node.all_input_nodes, *self.stale.get(node, {}).values()]

    def written_after(self, node: fx.Node) -> list[fx.Node]:
        """Returns the nodes that overwrite the node's result later on."""
        writers = self.writers.get(self.storage[node], ())
        return [writer for writer in writers if self.position[writer] > self.position[node]]


def live_nodes(effects: Effects, keeps: Callable[[str], bool]) -> set[fx.Node]:
    """Returns the nodes that results, the caller's tensors or state tensors accepted by ``keeps`` depend on.

    It is one sweep from the end: a write counts when a live node reads that storage later.
    """
    kept = {
        effects.storage[node]
        for node in effects.nodes
        if node.op == "placeholder" or (node.op == "get_attr" and keeps(str(node.target)))
    }
    live: set[fx.Node] = set()
    read = set(kept)
    for node in reversed(effects.nodes):
        if (
            node.op in ("placeholder", "output")
            or any(user in live for user in node.users)
            or any(effects.storage[target] in read for target in written_inputs(node))
            or _acts_outside(node)
        ):
            live.add(node)
            read.update(effects.storage[source] for source in node.all_input_nodes)
    return live


def remove_dead_code(graph: fx.Graph, keeps: Callable[[str], bool] = lambda name: True) -> None:
    """Removes the nodes on which nothing that is kept depends, in place; placeholders always stay.

    Args:
        graph: The graph.
        keeps: Whether a state tensor, given by name, is kept, so that writes to it count; by default all are.
    """
    live = live_nodes(Effects(graph), keeps)
    for node in reversed(list(graph.nodes)):
        if node not in live:
            graph.erase_node(node)


def _acts_outside(node: fx.Node) -> bool:
    """Returns whether the node does more than compute and write tensors, as an assertion does."""
    if node.op != "call_function":
        return node.op in ("call_module", "call_method") and node.is_impure()
    if isinstance(node.target, torch._ops.OpOverload):
        returns = node.target._schema.returns
        return not returns and not node.target._schema.is_mutable
    return node.target in fx.node._side_effectful_functions
