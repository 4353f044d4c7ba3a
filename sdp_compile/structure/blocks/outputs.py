"""Branches with several outputs: terms that share what computes them are dropped together.

In N-BEATS one branch gives ``x - a`` and ``y + f``, in WaveNet the residual and the skip output.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from sdp_compile.ir.effects import Effects
from sdp_compile.structure.blocks.residual import Finder, Residuals
from sdp_compile.structure.blocks.terms import Region, Term, exits, feeding


@dataclass(eq=False)
class _Group:
    """Terms that are dropped together, and the region that only they need."""

    terms: tuple[Term, ...]
    region: Region
    nodes: frozenset[fx.Node] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = frozenset(self.region.nodes)


def joined_outputs(residuals: Residuals, finder: Finder, alone: Collection[Term]) -> list[tuple[Term, ...]]:
    """Returns terms that only together take all outputs of what a skip path feeds, each group in the graph's order.

    Args:
        residuals: What may be dropped in the graph.
        finder: What found it.
        alone: The terms that are blocks by themselves. They stay so where they meet in one sum.
    """
    outputs, branches = list(residuals.outputs), set(residuals.branches)
    while True:
        groups = _groups(outputs, residuals, finder, alone)
        found = {term: group for group in groups for term in group.terms}
        whole = [terms for terms in residuals.sums if all(term in found or term in branches for term in terms)]
        if not whole:
            return [group.terms for group in groups]
        for terms in whole:  # as of the forecasts of N-BEATS: the output of the smallest block stays
            further = [term for term in terms if term not in branches]
            outputs.remove(min(reversed(further), key=lambda term: finder.nbytes(found[term].region.parameters)))


def _groups(outputs: Sequence[Term], residuals: Residuals, finder: Finder, alone: Collection[Term]) -> list[_Group]:
    groups = [_Group((term,), term.region) for term in outputs]
    while links := list(_links(groups, residuals, finder, alone)):
        groups = _merged(groups, links, finder)
    return [group for group in groups if len(group.terms) > 1 and any(residuals.skips[term] for term in group.terms)]


def _links(
    groups: Sequence[_Group], residuals: Residuals, finder: Finder, alone: Collection[Term]
) -> Iterator[list[_Group]]:
    """Yields groups that take all that becomes of a node: it belongs to none of them alone, but to all together."""
    effects = finder.effects
    leaving = exits([(term.addition, term.addend) for group in groups for term in group.terms], effects)
    by_node: dict[fx.Node, list[_Group]] = {}
    for group in groups:
        for node in group.region.boundary:
            by_node.setdefault(node, []).append(group)
    for node, sharing in by_node.items():
        if len(sharing) == 1 or node.op == "placeholder":
            continue
        sharing.sort(key=lambda group: len(group.nodes))
        # Of nested groups, the innermost one reads the node.
        takers = [
            next((group for group in sharing if reader in group.nodes or _ends(node, reader, group, leaving)), None)
            for reader in effects.readers[node]
        ]
        found = list(dict.fromkeys(group for group in takers if group is not None))
        terms = [term for group in found for term in group.terms]
        separate = len({term.total for term in terms}) == 1 and all(term in alone for term in terms)
        if None in takers or len(found) == 1 or separate:
            continue
        if _lies_on_branches(node, terms, residuals, effects):
            yield found


def _ends(node: fx.Node, reader: fx.Node, group: _Group, leaving: Mapping[fx.Node, Collection[fx.Node]]) -> bool:
    """Whether a node is an output of a group that another node adds up."""
    return node in leaving.get(reader, ()) and any(
        term.addition.reader is reader and node in term.factors for term in group.terms
    )


def _lies_on_branches(node: fx.Node, terms: Sequence[Term], residuals: Residuals, effects: Effects) -> bool:
    """Whether the skip paths of terms feed the node. They do not feed what many branches read, as an embedding.

    The skip path itself is no part of a branch, but the output of one may lead to another.
    """
    is_output = any(node in term.factors for term in terms)
    for skips in (residuals.skips[term] for term in terms):
        if skips and (not feeding(skips, [node], effects) or (node in skips and not is_output)):
            return False
    return True


def _merged(groups: Sequence[_Group], links: Sequence[list[_Group]], finder: Finder) -> list[_Group]:
    parent = {group: group for group in groups}

    def find(group: _Group) -> _Group:
        while parent[group] is not group:
            parent[group] = group = parent[parent[group]]
        return group

    for first, *others in links:
        for other in others:
            parent[find(other)] = find(first)
    members: dict[_Group, list[Term]] = {}
    for group in groups:
        members.setdefault(find(group), []).extend(group.terms)
    position = finder.effects.position

    def grown(terms: list[Term]) -> _Group:
        terms.sort(key=lambda term: position[term.addition.reader])
        return _Group(tuple(terms), finder.grow(terms))

    return [group if len(terms) == len(group.terms) else grown(terms) for group, terms in members.items()]
