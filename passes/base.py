"""What a pass is, and what it knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import fx

from sdp_compile.ir.program import Capture, Program
from sdp_compile.structure.blocks.finding import Blocks
from sdp_compile.structure.families import Structure

if TYPE_CHECKING:
    from sdp_compile.planning.plan import Plan

LoweringKind = Literal["sliced", "masked"]


@dataclass(frozen=True)
class Lowering:
    """Everything that a pass may ask about the rank that it rewrites a program for."""

    capture: Capture
    structure: Structure
    plan: Plan
    rank: int
    lowering: LoweringKind
    blocks: Blocks

    def keeps(self, fqn: str) -> bool:
        """Whether the rank holds any part of this parameter, buffer or constant."""
        made_for_this_worker = self.lowering == "masked" or fqn not in self.plan.state
        return made_for_this_worker or self.plan.local_shape(fqn, self.rank) is not None

    @property
    def kept_units(self) -> Mapping[str, int]:
        """The units of each cut axis that the rank's graph computes with, where those are not all."""
        cut = self.lowering == "sliced" and self.plan.masking == "forward"
        return self.plan.kept_units(self.rank) if cut else {}


class Pass(ABC):
    """A small frozen object with one job: it takes a program and returns a rewritten one.

    The graph is valid before and after (``graph.lint()``). The given program is never changed: a pass works on a copy,
    or returns the program itself when there is nothing to do. Nodes keep their names and their metadata; a new node
    gets ``meta["val"]``. What the graph computes changes only as the pass's docstring says.
    """

    name: ClassVar[str]

    @abstractmethod
    def run(self, program: Program, context: Lowering) -> Program:
        """The rewritten program."""


def copy_program(program: Program) -> Program:
    """The same program with a graph of its own, in which nodes have the same names and copies of the metadata."""
    graph = fx.Graph(tracer_cls=program.graph._tracer_cls)
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        copies[node] = copy = graph.node_copy(node, copies.__getitem__)
        if copy.name != node.name:
            copy._rename(node.name)
    graph._codegen = program.graph._codegen
    return replace(program, graph=graph)
