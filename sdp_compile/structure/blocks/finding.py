"""The search for blocks: residual branches that can be dropped whole.

A branch is a block when its output is provably 0 once the parameters that only it uses are 0. Branches that share such
a parameter, as ALBERT's layers do, form one block together. Of nested blocks only the innermost counts, and a block
must occur in the graphs of all modes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import fx

from sdp_compile.ir.effects import Effects, written_inputs
from sdp_compile.ir.program import Capture, Mode, Program, StateTensor
from sdp_compile.structure.blocks.block import Block, Blocks, Branch
from sdp_compile.structure.blocks.names import layer_names, unique_names
from sdp_compile.structure.blocks.residual import Term, find_residuals
from sdp_compile.structure.blocks.zero import is_zero_without


@dataclass(frozen=True)
class _Unit:
    """A block in one graph."""

    terms: tuple[Term, ...]
    parameters: frozenset[str]
    buffers: frozenset[str]

    @cached_property
    def nodes(self) -> frozenset[fx.Node]:
        return frozenset(node for term in self.terms for node in term.region)


def find_blocks(capture: Capture) -> Blocks:
    """Returns the blocks of a captured model, in time linear in the graphs for a given depth of nesting."""
    found: dict[Mode, list[_Unit]] = {}
    adds: dict[Mode, frozenset[str]] = {}
    outside: set[str] = set()
    for mode, program in capture.programs.items():
        found[mode], adds[mode] = _units(program, capture.state)
    modes = list(found)
    by_parameters = {mode: {unit.parameters: unit for unit in found[mode]} for mode in modes}
    common = [unit.parameters for unit in found[modes[0]] if all(unit.parameters in by_parameters[m] for m in modes)]
    for mode in modes:
        owned = {name for parameters in common for name in by_parameters[mode][parameters].buffers}
        outside |= {str(node.target) for node in capture.programs[mode].graph.find_nodes(op="get_attr")} - owned
    order = {name: index for index, name in enumerate(capture.state)}
    units = [{mode: by_parameters[mode][parameters] for mode in modes} for parameters in common]
    names = unique_names([unit[modes[0]].parameters for unit in units], capture.state)
    layers = layer_names(names, [[t.add for t in unit[modes[0]].terms] for unit in units], capture.skeleton)
    blocks = []
    for unit, parameters, name, layer in zip(units, common, names, layers, strict=True):
        buffers = {buffer for mode in modes for buffer in unit[mode].buffers} - outside
        branches = {mode: tuple(_branch(term) for term in unit[mode].terms) for mode in modes}
        blocks.append(
            Block(
                name=name,
                layer=layer,
                parameters=tuple(sorted(parameters, key=order.__getitem__)),
                buffers=tuple(sorted(buffers, key=order.__getitem__)),
                branches=branches,
            )
        )
    return Blocks(tuple(blocks), adds)


def _branch(term: Term) -> Branch:
    return Branch(term.add.name, term.operand.name, tuple(node.name for node in term.region))


def _units(program: Program, state: Mapping[str, StateTensor]) -> tuple[list[_Unit], frozenset[str]]:
    """Returns the blocks of one graph in its order, and the names of the residual adds outside of branches."""
    effects = Effects(program.graph)
    residuals = find_residuals(program, state, effects)
    finder = _UnitFinder(program.graph, state, effects)
    units = finder.innermost(finder.valid(list(residuals.branches)))
    inner = {node for term in residuals.branches for node in term.region}
    return units, frozenset(add.name for add in residuals.adds if add not in inner)


class _UnitFinder:
    def __init__(self, graph: fx.Graph, state: Mapping[str, StateTensor], effects: Effects) -> None:
        self.state = state
        self.effects = effects
        self.attributes = {str(node.target): node for node in graph.find_nodes(op="get_attr")}
        self.siblings: dict[str, list[str]] = {}
        for name in self.attributes:
            self.siblings.setdefault(name.rpartition(".")[0], []).append(name)

    def valid(self, terms: list[Term]) -> list[_Unit]:
        """Returns the units that are 0 without their own parameters; terms that fail alone are tried together."""
        units: list[_Unit] = []
        failed: list[Term] = []
        for term in terms:
            unit = self._unit([term])
            if unit is None:
                failed.append(term)
            else:
                units.append(unit)
        for group in _sharing(failed, [unit.terms[0] for unit in units], self.attributes, self.effects):
            unit = self._unit(group)
            if unit is not None:
                units = [other for other in units if other.terms[0] not in group]
                units.append(unit)
        return units

    def innermost(self, units: list[_Unit]) -> list[_Unit]:
        """Drops each unit that contains another one."""
        taken: set[fx.Node] = set()
        kept = []
        for unit in sorted(units, key=lambda unit: len(unit.nodes)):
            if not taken & unit.nodes:
                taken |= unit.nodes
                kept.append(unit)
        return sorted(kept, key=lambda unit: self.effects.position[unit.terms[0].add])

    def _unit(self, terms: list[Term]) -> _Unit | None:
        """Returns terms as one unit, or None if one is not 0 without the parameters that only they use."""
        nodes = {node for term in terms for node in term.region}
        owned = self._owned(nodes)
        parameters = frozenset(name for name in owned if self.state[name].kind == "parameter")
        if not parameters or self._writes_elsewhere(nodes, owned):
            return None
        for term in terms:
            region = [*self._attributes_of(term, parameters), *term.region]
            if not is_zero_without(term.operand, region, parameters, self.effects):
                return None
        return _Unit(tuple(terms), parameters, frozenset(owned) - parameters)

    def _attributes_of(self, term: Term, parameters: Iterable[str]) -> list[fx.Node]:
        """Returns the parameters that the term shares with others of its unit: they lie outside of its region."""
        region = set(term.region)
        shared = (self.attributes[name] for name in term.parameters if name in parameters)
        return [node for node in shared if node not in region]

    def _owned(self, nodes: set[fx.Node]) -> set[str]:
        """Returns the state that only these nodes read, and the counters of their normalisations, which none reads."""
        used = {source for node in nodes for source in (node, *node.all_input_nodes) if source.op == "get_attr"}
        owned = {str(node.target) for node in used if self.effects.readers[node] <= nodes}
        for module in {name.rpartition(".")[0] for name in owned}:
            rest = [name for name in self.siblings[module] if name not in owned]
            if all(self._is_counter(self.attributes[name]) for name in rest):
                owned.update(rest)
        return owned

    def _is_counter(self, node: fx.Node) -> bool:
        return self.state[str(node.target)].kind == "buffer" and all(
            node in written_inputs(reader) and not self.effects.readers[reader] for reader in self.effects.readers[node]
        )

    def _writes_elsewhere(self, nodes: set[fx.Node], owned: set[str]) -> bool:
        """Returns whether a node writes to state that other nodes use: dropping it would change them."""
        targets = (target for node in nodes for target in written_inputs(node) if target.op == "get_attr")
        return any(str(target.target) not in owned for target in targets)


def _sharing(
    failed: list[Term], valid: list[Term], attributes: Mapping[str, fx.Node], effects: Effects
) -> list[list[Term]]:
    """Groups the failed terms by shared parameters, together with valid terms that share one of them.

    A parameter that is used outside of all terms joins none.
    """
    terms = failed + valid
    inside = {node for term in terms for node in term.region}
    parent = list(range(len(terms)))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    users: dict[str, list[int]] = {}
    for index, term in enumerate(terms):
        for name in term.parameters:
            if effects.readers[attributes[name]] <= inside:
                users.setdefault(name, []).append(index)
    needed = {name for term in failed for name in term.parameters}
    for name, indices in users.items():
        for index in indices[1:] if name in needed else ():
            parent[find(index)] = find(indices[0])
    groups: dict[int, list[Term]] = {}
    for index, term in enumerate(terms):
        groups.setdefault(find(index), []).append(term)
    position = effects.position
    return [sorted(group, key=lambda term: position[term.add]) for group in groups.values() if len(group) > 1]
