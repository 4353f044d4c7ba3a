"""The residual adds of one graph, and the branches that they add to a skip path.

Chains of adds are flattened into sums: in ``x + (attention + mlp)`` three terms meet. A term is a branch when a skip
path, another term of its sum, feeds it and it computes with parameters on the way.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from sdp_compile.ir.effects import Effects, shape_text, tensor_value
from sdp_compile.ir.program import Program, StateTensor
from sdp_compile.ir.schema import functional_name, operator_name
from sdp_compile.structure.blocks.block import ADDS
from sdp_compile.structure.blocks.zero import evaluate
from sdp_compile.structure.operators.at_zero import Outcome

# Besides products with numbers or noise, these may stand between two adds of one chain.
_TRANSPARENT = frozenset("dropout feature_dropout native_dropout to _to_copy type_as contiguous clone alias".split())
_SCALES = frozenset("mul div".split())


@dataclass(frozen=True)
class Term:
    """One operand of an add, and the region of nodes that only it needs, in the order of the graph.

    The region is empty where the term is used elsewhere too. ``boundary`` holds the activations that feed the region,
    ``parameters`` the names that it reads.
    """

    add: fx.Node
    operand: fx.Node
    region: tuple[fx.Node, ...] = ()
    boundary: frozenset[fx.Node] = frozenset()
    parameters: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Residuals:
    """``adds``: every residual add with a branch that has parameters.

    ``branches``: the terms that can be dropped as far as the shape of the graph goes; whether they are 0 without their
    parameters is not asked here.
    """

    adds: frozenset[fx.Node]
    branches: tuple[Term, ...]


def find_residuals(program: Program, state: Mapping[str, StateTensor], effects: Effects) -> Residuals:
    """Returns all residual adds and branches of one graph, in its order."""
    return _Finder(program, state, effects).find()


class _Finder:
    def __init__(self, program: Program, state: Mapping[str, StateTensor], effects: Effects) -> None:
        self.state = state
        self.effects = effects
        self.position = effects.position
        self.activations: set[fx.Node] = set()
        self.parametric: set[fx.Node] = set()
        data: set[fx.Node] = set()
        for node in effects.nodes:
            value = node.meta.get("val")
            sources = effects.sources(node)
            if node.op == "placeholder" or any(source in data for source in sources):
                if value is None or isinstance(value, torch.Tensor | tuple | list):
                    data.add(node)
                    if not isinstance(value, torch.Tensor) or value.is_floating_point() or value.is_complex():
                        self.activations.add(node)
            elif self._is_parameter(node) or any(source in self.parametric for source in sources):
                self.parametric.add(node)

    def _is_parameter(self, node: fx.Node) -> bool:
        return node.op == "get_attr" and self.state[str(node.target)].kind == "parameter"

    def find(self) -> Residuals:
        adds: set[fx.Node] = set()
        branches: list[Term] = []
        chained: set[fx.Node] = set()
        for root in reversed(self.effects.nodes):
            if root not in chained and root in self.effects.live and self._is_add(root):
                members, terms = self._flatten(root)
                chained |= members
                found = [term for term in terms if self._is_branch(term, terms)]
                for term in found:
                    adds |= self._chain(term.add, members)
                if all(_same_shape(operand, add) for add in members for operand in _operands(add)):
                    branches += self._droppable(found, terms)
        branches.sort(key=lambda term: self.position[term.operand])
        return Residuals(frozenset(adds), tuple(branches))

    def _is_add(self, node: fx.Node) -> bool:
        """Whether the node adds two activations; one side of a bias or position embedding add is not an activation."""
        if node.op != "call_function" or node.target not in ADDS or node.kwargs.get("alpha", 1) != 1:
            return False
        value = tensor_value(node)
        sides = node.args[:2]
        return (
            value is not None
            and value.is_floating_point()
            and len(set(sides)) == 2
            and all(side in self.activations for side in sides)
        )

    def _flatten(self, root: fx.Node) -> tuple[set[fx.Node], list[Term]]:
        """Returns the adds that lead only to ``root``, with it, and the terms that they sum."""
        members, terms, stack = {root}, [], [root]
        while stack:
            add = stack.pop()
            for operand in _operands(add):
                inner = self._inner_add(operand, add)
                if inner is None:
                    terms.append(self._term(add, operand))
                else:
                    members.add(inner)
                    stack.append(inner)
        terms.sort(key=lambda term: self.position[term.operand])
        return members, terms

    def _inner_add(self, node: fx.Node, user: fx.Node) -> fx.Node | None:
        """Returns the add that ``node`` passes on to ``user``, None if something else uses what lies between."""
        while self.effects.readers[node] == {user}:
            if self._is_add(node):
                return node
            inner = self._passed_on(node)
            if inner is None:
                return None
            node, user = inner, node
        return None

    def _passed_on(self, node: fx.Node) -> fx.Node | None:
        """Returns the one activation that the node passes on after dropout, a cast or a scaling."""
        name = functional_name(operator_name(node))
        inputs = [source for source in node.all_input_nodes if source in self.activations]
        if len(inputs) != 1 or any(source in self.parametric for source in node.all_input_nodes):
            return None
        scales = name in _SCALES and evaluate(node, {inputs[0]: Outcome.ZERO}) is Outcome.ZERO
        return inputs[0] if name in _TRANSPARENT or scales else None

    def _chain(self, add: fx.Node, members: Collection[fx.Node]) -> set[fx.Node]:
        """Returns the adds of the flattened sum from ``add`` on."""
        chain = {add}
        while len(add.users) == 1 and (add := next(iter(add.users))).op != "output":
            if add in members:
                chain.add(add)
        return chain

    def _term(self, add: fx.Node, operand: fx.Node) -> Term:
        """Returns a term whose region is grown backwards: a node belongs to it when all its readers do."""
        readers = self.effects.readers
        if readers[operand] != {add}:
            return Term(add, operand)
        region: set[fx.Node] = set()
        boundary: set[fx.Node] = set()
        parameters: set[str] = set()
        queue, seen = [(-self.position[operand], operand)], {operand}
        while queue:
            _, node = heapq.heappop(queue)
            if self._is_parameter(node):
                parameters.add(str(node.target))
            if node.op == "placeholder" or not (node is operand or readers[node] <= region):
                if node in self.activations:
                    boundary.add(node)
                continue
            region.add(node)
            for source in self.effects.sources(node):
                if source not in seen:
                    seen.add(source)
                    heapq.heappush(queue, (-self.position[source], source))
        ordered = tuple(sorted(region, key=self.position.__getitem__))
        return Term(add, operand, ordered, frozenset(boundary), frozenset(parameters))

    def _is_branch(self, term: Term, terms: list[Term]) -> bool:
        """Whether the term has parameters and a skip path among the others feeds it."""
        others = [other for other in terms if other is not term]
        if not term.region:
            return self._feeds_through_parameters([other.operand for other in others], term.operand)
        if not term.parameters:
            return False
        projected = any(
            other.region and len(other.boundary) == 1 and other.boundary <= term.boundary for other in others
        )
        return projected or bool(self._feeding([other.operand for other in others], term.boundary))

    def _feeding(self, sources: Iterable[fx.Node], nodes: Iterable[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
        """Returns the sources that feed one of the nodes, each with the nodes met on the way back to it."""
        wanted = set(sources)
        lowest = min((self.position[source] for source in wanted), default=len(self.position))
        queue = [(-self.position[node], node) for node in set(nodes)]
        heapq.heapify(queue)
        seen = {node for _, node in queue}
        found: dict[fx.Node, set[fx.Node]] = {}
        while queue and -queue[0][0] >= lowest:
            _, node = heapq.heappop(queue)
            if node in wanted:
                found[node] = seen
                continue  # what lies before a skip path feeds it, not the branch
            for source in self.effects.sources(node):
                if source not in seen:
                    seen.add(source)
                    heapq.heappush(queue, (-self.position[source], source))
        return found

    def _feeds_through_parameters(self, sources: list[fx.Node], node: fx.Node) -> bool:
        earlier = [source for source in sources if self.position[source] < self.position[node]]
        for source, between in self._feeding(earlier, [node]).items():
            fed = {source}
            for step in sorted(between, key=self.position.__getitem__):
                if any(before in fed for before in self.effects.sources(step)):
                    fed.add(step)
                    if any(before in self.parametric for before in step.all_input_nodes):
                        return True
        return False

    def _droppable(self, branches: list[Term], terms: list[Term]) -> list[Term]:
        """Returns the branches with a region; if every term is one, the smallest is the shortcut and stays."""
        closed = [term for term in branches if term.region]
        if len(closed) == len(terms):
            closed.remove(min(reversed(closed), key=lambda term: self._nbytes(term.parameters)))
        return closed

    def _nbytes(self, parameters: Iterable[str]) -> int:
        return sum(self.state[name].nbytes for name in parameters)


def _operands(add: fx.Node) -> tuple[Any, Any]:
    return add.args[0], add.args[1]


def _same_shape(operand: fx.Node, add: fx.Node) -> bool:
    """Returns whether a term has the shape of the sum, so that it can replace the sum."""
    values = tensor_value(operand), tensor_value(add)
    return values[0] is not None and values[1] is not None and shape_text(values[0]) == shape_text(values[1])
