"""What a pass is, and what it knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, fx

from sdp_compile.ir.program import Program, StateTensor
from sdp_compile.planning.families import Masking
from sdp_compile.planning.holdings import Holdings, LoweringKind
from sdp_compile.planning.plan import Plan
from sdp_compile.structure.analysis import Analysis


@dataclass(frozen=True, eq=False)
class PassContext:
    """Everything that a pass may ask about the worker that it rewrites a program for.

    Attributes:
        analysis: The captured model with its axes and blocks.
        plan: Who owns what.
        holdings: Which tensors the worker holds, and where they lie in the full ones.
    """

    analysis: Analysis
    plan: Plan
    holdings: Holdings

    @property
    def rank(self) -> int:
        """The worker that the program is for."""
        return self.holdings.rank

    @cached_property
    def state(self) -> Mapping[str, StateTensor]:
        """The full tensors that the graph may read by name, with the buffers that only this worker has."""
        return {**self.analysis.capture.state, **self.holdings.buffers}

    @cached_property
    def constants(self) -> Mapping[str, Tensor]:
        """The values of lifted constants and of masks."""
        return {**self.analysis.capture.constants, **self.holdings.constants}


class Pass(ABC):
    """A small frozen object with one job: it takes a program and returns a rewritten one.

    The graph is valid before and after (``graph.lint()``), and what it computes changes only as the pass's docstring
    says. The given program is never changed: a pass works on a copy (`sdp_compile.ir.program.copy_program`), or returns
    the program itself when there is nothing to do. Nodes keep their names and their metadata; a new node gets
    ``meta["val"]``, a fake tensor like its result.

    A pass of your own is a frozen dataclass with a ``name`` and a ``run`` method; `register_pass` makes it known by
    name to ``passes=``, to TOML files and to the command line.
    """

    name: ClassVar[str]
    """What the pass is called in pipelines, in the inspector and in messages."""

    before: ClassVar[str] = "sync_gradients"
    """Where the pass goes when it is added to the default pipeline by name: before the pass of this name."""

    lowering: ClassVar[LoweringKind | None] = None
    """What the pass makes of the parameters, if it is one that reduces them; a pipeline has exactly one."""

    masking: ClassVar[Masking | None] = None
    """The masking that such a pass is for."""

    @abstractmethod
    def run(self, program: Program, context: PassContext) -> Program:
        """Returns the rewritten program.

        Args:
            program: One mode of the model, as the passes before have left it.
            context: The worker, its plan and its tensors.

        Raises:
            LoweringError: If the program does not have what the pass needs.
        """


def inherited(node: fx.Node) -> dict[str, Any]:
    """Returns the metadata for a new node that stands for the same tensor as ``node``.

    ``meta["rewrites"]`` is left out: it names arguments of the node's own operator.
    """
    return {key: value for key, value in node.meta.items() if key != "rewrites"}
