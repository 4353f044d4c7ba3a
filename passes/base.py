"""The base class of passes, and the context that a pass runs in."""

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
    """The worker that a pass rewrites a program for.

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
        """The worker's number."""
        return self.holdings.rank

    @cached_property
    def state(self) -> Mapping[str, StateTensor]:
        """The tensors that the graph may read by name: the full ones, and the buffers that only this worker has."""
        return {**self.analysis.capture.state, **self.holdings.buffers}

    @cached_property
    def constants(self) -> Mapping[str, Tensor]:
        """The values of lifted constants and of masks."""
        return {**self.analysis.capture.constants, **self.holdings.constants}


class Pass(ABC):
    """Base class of passes: takes a program and returns a rewritten one.

    The graph is valid before and after (``graph.lint()``), and computes the same except for what the pass's docstring
    says. A pass never changes the program that it is given: it rewrites a copy
    (`sdp_compile.ir.program.copy_program`), or returns the program itself if there is nothing to do. Nodes keep their
    names and their metadata. A new node gets ``meta["val"]``, a fake tensor of the shape and dtype of its result.

    To write a pass, make a frozen dataclass with a ``name`` and a ``run`` method. `register_pass` gives it a name that
    ``passes=``, TOML files and the command line know.
    """

    name: ClassVar[str]
    """The name of the pass in pipelines, in the inspector and in messages."""

    before: ClassVar[str] = "sync_gradients"
    """The name of the pass that this one goes before when it is added to the default pipeline."""

    lowering: ClassVar[LoweringKind | None] = None
    """How the pass reduces parameters; None if it does not. A pipeline has exactly one pass that does."""

    masking: ClassVar[Masking | None] = None
    """The masking that a pass that reduces parameters is for; None for other passes."""

    @abstractmethod
    def run(self, program: Program, context: PassContext) -> Program:
        """Returns the rewritten program.

        Args:
            program: One mode of the model, as the passes before this one left it. It must not be changed.
            context: The worker, its plan and its tensors.

        Raises:
            LoweringError: If the program does not have what the pass needs.
        """


def inherited(node: fx.Node) -> dict[str, Any]:
    """Returns the metadata for a new node that takes the place of ``node`` for its readers.

    ``meta["rewrites"]`` is left out, since it names arguments of the operator of ``node``.
    """
    return {key: value for key, value in node.meta.items() if key != "rewrites"}
