"""What is inspected: a model's analysis and its plan, and the programs of a worker where they were lowered already."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from sdp_compile.ir.program import Capture
from sdp_compile.lowering import Lowered
from sdp_compile.planning.plan import Plan
from sdp_compile.structure.analysis import Analysis
from sdp_compile.structure.blocks.block import Blocks
from sdp_compile.structure.families import Structure


@dataclass(frozen=True, eq=False)
class Subject:
    """What every view is computed from; ``lowered`` is the worker that was compiled, if one was."""

    analysis: Analysis
    plan: Plan
    lowered: Lowered | None = None

    @classmethod
    def of(cls, lowered: Lowered) -> Subject:
        """The subject of a worker's lowered programs; nothing is analysed again."""
        return cls(lowered.analysis, lowered.plan, lowered)

    @property
    def capture(self) -> Capture:
        """The model as captured."""
        return self.analysis.capture

    @property
    def structure(self) -> Structure:
        """The families that a policy may partition."""
        return self.analysis.structure

    @property
    def blocks(self) -> Blocks:
        """The residual branches that can be dropped whole."""
        return self.analysis.blocks

    @property
    def model(self) -> str:
        """The class name of the user's model."""
        return type(self.capture.skeleton).__name__

    @cached_property
    def module_types(self) -> dict[str, str]:
        """The class name of each module by path; "" is the model."""
        return {path: type(module).__name__ for path, module in self.capture.skeleton.named_modules()}
