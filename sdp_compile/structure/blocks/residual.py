"""The residual adds of one graph, and the branches that they add to a skip path.

Chains of adds are flattened into sums: in ``x + (attention + mlp)`` three terms meet. A term is a branch when a skip
path, another term of its sum, feeds it and it computes with parameters on the way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from sdp_compile.ir.effects import Effects, shape_text, tensor_value
from sdp_compile.ir.program import Program, StateTensor
from sdp_compile.ir.schema import functional_name, operator_name
from sdp_compile.structure.blocks.additions import Addend, Addition, addition_of
from sdp_compile.structure.blocks.terms import Region, Term, feeding, grow
from sdp_compile.structure.blocks.zero import evaluate
from sdp_compile.structure.operators.at_zero import Outcome

# Besides products with numbers or noise, these may stand between two adds of one chain.
_TRANSPARENT = frozenset("dropout feature_dropout native_dropout to _to_copy type_as contiguous clone alias".split())
_SCALES = frozenset("mul div".split())


@dataclass(frozen=True)
class Residuals:
    """``adds``: every residual add with a branch that has parameters.

    ``branches``: the terms that can be dropped as far as the shape of the graph goes; whether they are 0 without their
    parameters is not asked here.

    ``outputs``: the branches and all other terms that are no skip path: they may be further outputs of a branch.

    ``sums``: the terms of each flattened sum. Whatever is dropped, one of them must stay.

    ``skips``: for each term the skip paths that feed it.
    """

    adds: frozenset[fx.Node]
    branches: tuple[Term, ...]
    outputs: tuple[Term, ...]
    sums: tuple[tuple[Term, ...], ...]
    skips: Mapping[Term, frozenset[fx.Node]]


class Finder:
    """Finds the residual branches of one graph."""

    def __init__(self, program: Program, state: Mapping[str, StateTensor], effects: Effects) -> None:
        self.state = state
        self.effects = effects
        self.position = effects.position
        self.activations: set[fx.Node] = set()
        self.parametric: set[fx.Node] = set()
        self.fed: dict[fx.Node, list[Term]] = {}
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
        """Returns all residual adds and branches of the graph, in its order."""
        adds: set[fx.Node] = set()
        branches: list[Term] = []
        outputs: list[Term] = []
        sums: list[tuple[Term, ...]] = []
        skips: dict[Term, frozenset[fx.Node]] = {}
        for members, terms in self._sums():
            results = {member.result for member in members}
            feeds = {term: self._skips(term, terms) for term in terms}
            found = [term for term in terms if self._is_branch(term, terms, feeds[term])]
            for term in found:
                adds |= self._chain(term.addition.result, results)
            for term in terms:
                for node in term.boundary if feeds[term] else ():
                    self.fed.setdefault(node, []).append(term)
            if all(map(_fits, members)):
                closed = self._closed(found, terms)
                branches += closed
                outputs += self._outputs(closed, terms, feeds)
                sums.append(tuple(terms))
                skips |= feeds
        for kind in (branches, outputs):
            kind.sort(key=self._order)
        return Residuals(frozenset(adds), tuple(branches), tuple(outputs), tuple(sums), skips)

    def _sums(self) -> Iterator[tuple[list[Addition], list[Term]]]:
        """Yields the additions and the terms of each flattened sum; sums inside of a term come before its own."""
        sums: list[tuple[list[Addition], list[Term]]] = []
        chained: set[fx.Node] = set()
        for root in reversed(self.effects.nodes):
            if root in chained or root not in self.effects.live:
                continue
            addition = self._addition(root)
            if addition is not None:
                members, terms = self._flatten(addition)
                chained.update(member.result for member in members)
                sums.append((members, terms))
        yield from reversed(sums)

    def grow(self, terms: Collection[Term]) -> Region:
        """Returns the region of several terms as one."""
        return grow([(term.addition, term.addend) for term in terms], self.effects, self.activations, self.state)

    def _order(self, term: Term) -> int:
        return max(self.position[factor] for factor in term.factors)

    def _addition(self, node: fx.Node) -> Addition | None:
        """What adds activations; one side of a bias or position embedding add is not an activation."""
        addition = addition_of(node)
        value = tensor_value(node)
        if addition is None or value is None or not (value.is_floating_point() or value.is_complex()):
            return None
        factors = {factor for addend in addition.addends for factor in addend.factors}
        others = (source for source in addition.reader.all_input_nodes if source not in factors)
        if any(other in self.activations for other in others):
            return None  # the weights of an interpolation depend on the input: a gate on the skip path
        each = (any(factor in self.activations for factor in addend.factors) for addend in addition.addends)
        return addition if all(each) else None

    def _flatten(self, root: Addition) -> tuple[list[Addition], list[Term]]:
        """Returns the additions that lead only to ``root``, with it, and the terms that they sum."""
        members, terms, stack = [root], [], [root]
        while stack:
            addition = stack.pop()
            for addend in addition.addends:
                inner = self._inner_addition(addend, addition)
                if inner is None:
                    terms.append(self._term(addition, addend, root))
                else:
                    members.append(inner)
                    stack.append(inner)
        terms.sort(key=self._order)
        return members, terms

    def _inner_addition(self, addend: Addend, addition: Addition) -> Addition | None:
        """Returns the addition that an addend passes on, None if something else uses what lies between."""
        node: fx.Node | None = addend.alone
        user = addition.reader
        while node is not None and self.effects.readers[node] == {user}:
            inner = self._addition(node)
            if inner is not None:
                return inner
            user, node = node, self._passed_on(node)
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

    def _term(self, addition: Addition, addend: Addend, root: Addition) -> Term:
        region = grow([(addition, addend)], self.effects, self.activations, self.state)
        return Term(addition, addend, root.result, region)

    def _skips(self, term: Term, terms: list[Term]) -> frozenset[fx.Node]:
        """Returns the other terms that feed one, and what feeds another term that is a projected skip path."""
        projected = (node for other in terms if self._is_projected(other, term) for node in other.boundary)
        return frozenset([*projected, *feeding(self._operands(term, terms), term.boundary, self.effects)])

    def _is_projected(self, term: Term, other: Term) -> bool:
        """Whether a term may be the projected skip path of another: both are computed from one activation.

        It is not if the other computes with the activation only in a branch inside of it, as the last skip output of
        WaveNet does with what the last but one is computed from: those are two outputs of that branch.
        """
        if term is other or not term.region.nodes or not other.region.nodes:
            return False
        if len(term.boundary) > 1 or not term.boundary <= other.boundary:
            return False
        for node in term.boundary:
            nodes = set(other.region.nodes) if node in self.fed else set()
            inner = [one for one in self.fed.get(node, ()) if one.addition.reader in nodes]
            inside = {node for one in inner for node in one.region.nodes}
            return not inner or not self.effects.readers[node] & nodes <= inside
        return False

    def _operands(self, term: Term, terms: list[Term]) -> list[fx.Node]:
        """Returns the other terms of a sum that are no products."""
        operands = (other.addend.alone for other in terms)
        return [operand for operand in operands if operand is not None and operand is not term.addend.alone]

    def _is_branch(self, term: Term, terms: list[Term], skips: frozenset[fx.Node]) -> bool:
        """Whether the term has parameters and a skip path among the others feeds it."""
        if term.region.nodes:
            return bool(term.parameters and skips)
        others = self._operands(term, terms)
        return any(self._feeds_through_parameters(others, factor) for factor in term.factors)

    def _feeds_through_parameters(self, sources: list[fx.Node], node: fx.Node) -> bool:
        earlier = [source for source in sources if self.position[source] < self.position[node]]
        for source, between in feeding(earlier, [node], self.effects).items():
            fed = {source}
            for step in sorted(between, key=self.position.__getitem__):
                if any(before in fed for before in self.effects.sources(step)):
                    fed.add(step)
                    if any(before in self.parametric for before in step.all_input_nodes):
                        return True
        return False

    def _closed(self, branches: list[Term], terms: list[Term]) -> list[Term]:
        """Returns the branches with a region; if every term is one, the smallest is the shortcut and stays."""
        closed = [term for term in branches if term.region.nodes]
        if len(closed) == len(terms):
            closed.remove(min(reversed(closed), key=lambda term: self.nbytes(term.parameters)))
        return closed

    def _outputs(self, closed: list[Term], terms: list[Term], skips: Mapping[Term, frozenset[fx.Node]]) -> list[Term]:
        """Returns the branches, and the terms that feed no other term and are no shortcut."""
        feeding_others = frozenset[fx.Node]().union(*(skips[term] for term in terms))
        return [
            term
            for term in terms
            if term in closed
            or not (
                (not skips[term] and not feeding_others.isdisjoint(term.factors))
                or any(self._is_projected(term, other) for other in terms)
            )
        ]

    def nbytes(self, parameters: Collection[str]) -> int:
        """Returns the size of parameters."""
        return sum(self.state[name].nbytes for name in parameters)


def _fits(addition: Addition) -> bool:
    """Returns whether each term has the shape of the sum, so that it can replace the sum."""
    total = tensor_value(addition.result)
    if total is None:
        return False
    shape = shape_text(total)
    values = [[tensor_value(factor) for factor in addend.factors] for addend in addition.addends]
    elementwise = operator_name(addition.reader).startswith("addcmul")
    return all(
        any(value is not None and shape_text(value) == shape for value in factors)
        for factors in values
        if len(factors) == 1 or elementwise  # a matrix product always has it
    )
