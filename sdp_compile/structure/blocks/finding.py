"""The search for blocks: residual branches that can be dropped whole.

A branch is a block when its output is provably 0 once the parameters that only it uses are 0. Branches that share such
a parameter, as ALBERT's layers do, form one block together. Of nested blocks only the innermost counts, and a block
must occur in every graph that uses one of its parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from sdp_compile.ir.effects import Effects, written_inputs
from sdp_compile.ir.program import Capture, Program, StateTensor
from sdp_compile.structure.blocks.block import Block, Blocks, Branch
from sdp_compile.structure.blocks.names import layer_names, unique_names
from sdp_compile.structure.blocks.outputs import joined_outputs
from sdp_compile.structure.blocks.residual import Finder
from sdp_compile.structure.blocks.terms import Region, Term
from sdp_compile.structure.blocks.zero import outcomes_without
from sdp_compile.structure.operators.at_zero import Outcome


@dataclass(frozen=True)
class _Unit:
    """A block in one graph."""

    terms: tuple[Term, ...]
    region: Region
    parameters: frozenset[str]
    buffers: frozenset[str]

    @cached_property
    def nodes(self) -> frozenset[fx.Node]:
        return frozenset(self.region.nodes)


def find_blocks(capture: Capture) -> Blocks:
    """Returns the blocks of a captured model, in time linear in the graphs for a given depth of nesting."""
    adds: dict[str, frozenset[str]] = {}
    by_parameters: dict[str, dict[frozenset[str], _Unit]] = {}
    for key, program in capture.programs.items():
        found, adds[key] = _units(program, capture.state)
        by_parameters[key] = {unit.parameters: unit for unit in found}
    used = {
        key: {str(node.target) for node in program.graph.find_nodes(op="get_attr")}
        for key, program in capture.programs.items()
    }
    common = [
        parameters
        for parameters in dict.fromkeys(parameters for units in by_parameters.values() for parameters in units)
        if all(parameters in by_parameters[key] or used[key].isdisjoint(parameters) for key in used)
    ]
    units = [
        {key: known[parameters] for key, known in by_parameters.items() if parameters in known} for parameters in common
    ]
    outside: set[str] = set()
    for key in used:
        outside |= used[key] - {name for unit in units if key in unit for name in unit[key].buffers}
    order = {name: index for index, name in enumerate(capture.state)}
    names = unique_names(common, capture.state)
    results = [[term.addition.result for term in next(iter(unit.values())).terms] for unit in units]
    layers = layer_names(names, results, capture.skeleton)
    blocks = []
    for unit, parameters, name, layer in zip(units, common, names, layers, strict=True):
        buffers = {buffer for one in unit.values() for buffer in one.buffers} - outside
        blocks.append(
            Block(
                name=name,
                layer=layer,
                parameters=tuple(sorted(parameters, key=order.__getitem__)),
                buffers=tuple(sorted(buffers, key=order.__getitem__)),
                branches={key: _branches(unit[key]) if key in unit else () for key in used},
                nodes={key: tuple(node.name for node in unit[key].region.nodes) if key in unit else () for key in used},
            )
        )
    return Blocks(tuple(blocks), adds)


def _branches(unit: _Unit) -> tuple[Branch, ...]:
    operands = [tuple(factor.name for factor in term.factors if factor in unit.nodes) for term in unit.terms]
    return tuple(Branch(term.addition.reader.name, names) for term, names in zip(unit.terms, operands, strict=True))


def _units(program: Program, state: Mapping[str, StateTensor]) -> tuple[list[_Unit], frozenset[str]]:
    """Returns the blocks of one graph in its order, and the names of the residual adds outside of branches."""
    effects = Effects(program.graph)
    search = Finder(program, state, effects)
    residuals = search.find()
    finder = _UnitFinder(program.graph, search)
    single = finder.valid([(term,) for term in residuals.branches])
    alone = {unit.terms[0] for unit in single if len(unit.terms) == 1}
    groups = joined_outputs(residuals, search, alone)
    grouped = {term for group in groups for term in group}
    joined = finder.valid([*groups, *((term,) for term in residuals.branches if term not in grouped)]) if groups else []
    units = finder.innermost(joined, single)
    inner = {node for term in residuals.branches for node in term.region.nodes}
    return units, frozenset(add.name for add in residuals.adds if add not in inner)


class _UnitFinder:
    def __init__(self, graph: fx.Graph, search: Finder) -> None:
        self.state = search.state
        self.effects = search.effects
        self.grow = search.grow
        self.attributes = {str(node.target): node for node in graph.find_nodes(op="get_attr")}
        self.siblings: dict[str, list[str]] = {}
        for name in self.attributes:
            self.siblings.setdefault(name.rpartition(".")[0], []).append(name)

    def valid(self, groups: list[tuple[Term, ...]]) -> list[_Unit]:
        """Returns the units that are 0 without their own parameters; groups of terms that fail are tried together."""
        units: list[_Unit] = []
        failed: list[tuple[Term, ...]] = []
        for terms in groups:
            unit = self._unit(terms)
            if unit is None:
                failed.append(terms)
            else:
                units.append(unit)
        for terms in self._sharing(failed, [unit.terms for unit in units]):
            unit = self._unit(terms)
            if unit is not None:
                units = [other for other in units if other.terms[0] not in terms]
                units.append(unit)
        return units

    def innermost(self, *kinds: list[_Unit]) -> list[_Unit]:
        """Drops each unit that contains another one of its kind, or meets one of a kind before it."""
        taken: set[fx.Node] = set()
        kept = []
        for units in kinds:
            for unit in sorted(units, key=lambda unit: len(unit.nodes)):
                if not taken & unit.nodes:
                    taken |= unit.nodes
                    kept.append(unit)
        return sorted(kept, key=lambda unit: self.effects.position[unit.terms[0].addition.reader])

    def _unit(self, terms: tuple[Term, ...]) -> _Unit | None:
        """Returns terms as one unit, or None if one is not 0 without the parameters that only they use."""
        region = terms[0].region if len(terms) == 1 else self.grow(terms)
        nodes = set(region.nodes)
        owned = self._owned(nodes)
        parameters = frozenset(name for name in owned if self.state[name].kind == "parameter")
        if not parameters or self._writes_elsewhere(nodes, owned):
            return None
        values = outcomes_without(region.nodes, parameters, self.effects)
        for term in terms:
            known = [values.get(factor, Outcome.FINITE) for factor in term.factors]
            if Outcome.ZERO not in known or Outcome.UNDEFINED in known:
                return None
        return _Unit(terms, region, parameters, frozenset(owned) - parameters)

    def _owned(self, nodes: Set[fx.Node]) -> set[str]:
        """Returns the state among these nodes, and the counters of their normalisations, which none reads."""
        owned = {str(node.target) for node in nodes if node.op == "get_attr"}
        for module in {name.rpartition(".")[0] for name in owned}:
            rest = [name for name in self.siblings[module] if name not in owned]
            if all(self._is_counter(self.attributes[name]) for name in rest):
                owned.update(rest)
        return owned

    def _is_counter(self, node: fx.Node) -> bool:
        return self.state[str(node.target)].kind == "buffer" and all(
            node in written_inputs(reader) and not self.effects.readers[reader] for reader in self.effects.readers[node]
        )

    def _writes_elsewhere(self, nodes: Set[fx.Node], owned: Set[str]) -> bool:
        """Returns whether a node writes to state that other nodes use: dropping it would change them."""
        targets = (target for node in nodes for target in written_inputs(node) if target.op == "get_attr")
        return any(str(target.target) not in owned for target in targets)

    def _sharing(self, failed: list[tuple[Term, ...]], valid: list[tuple[Term, ...]]) -> list[tuple[Term, ...]]:
        """Joins failed groups of terms that share parameters, together with valid ones that share one of them.

        A parameter that is used outside of all terms joins none.
        """
        groups = failed + valid
        regions = [terms[0].region if len(terms) == 1 else self.grow(terms) for terms in groups]
        inside = {node for region in regions for node in region.nodes}
        parent = list(range(len(groups)))

        def find(index: int) -> int:
            while parent[index] != index:
                parent[index] = index = parent[parent[index]]
            return index

        users: dict[str, list[int]] = {}
        for index, region in enumerate(regions):
            for name in region.parameters:
                if self.effects.readers[self.attributes[name]] <= inside:
                    users.setdefault(name, []).append(index)
        needed = {name for region in regions[: len(failed)] for name in region.parameters}
        for name, indices in users.items():
            for index in indices[1:] if name in needed else ():
                parent[find(index)] = find(indices[0])
        members: dict[int, list[tuple[Term, ...]]] = {}
        for index, terms in enumerate(groups):
            members.setdefault(find(index), []).append(terms)
        position = self.effects.position
        return [
            tuple(sorted((t for terms in group for t in terms), key=lambda term: position[term.addition.reader]))
            for group in members.values()
            if len(group) > 1
        ]
