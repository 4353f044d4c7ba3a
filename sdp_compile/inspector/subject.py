"""What is inspected: a model's capture, its structure and its plan, before any rank's rewrite."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from sdp_compile.ir.program import Capture
from sdp_compile.planning.plan import Plan
from sdp_compile.structure.analysis import analyse
from sdp_compile.structure.blocks.finding import Blocks
from sdp_compile.structure.families import Structure

if TYPE_CHECKING:
    from sdp_compile.runtime.module.sdp_module import SDPModule


@dataclass(frozen=True, eq=False)
class Subject:
    """The results of capture, analysis and planning that every view is computed from.

    ``verified`` says that the programs of this plan passed the last pass, `Verify`, when they were compiled.
    """

    capture: Capture
    structure: Structure
    blocks: Blocks
    plan: Plan
    verified: bool = False

    @classmethod
    def of(cls, module: SDPModule) -> Subject:
        """The subject of a compiled module; its capture is analysed again, which takes shapes only."""
        known = module.plan.state.keys()  # a masked module's capture also holds its masks
        capture = replace(
            module.capture,
            state={name: tensor for name, tensor in module.capture.state.items() if name in known},
            constants={name: value for name, value in module.capture.constants.items() if name in known},
        )
        return cls(capture, *analyse(capture), module.plan, verified=True)

    @property
    def model(self) -> str:
        """The class name of the user's model."""
        return type(self.capture.skeleton).__name__

    @cached_property
    def module_types(self) -> dict[str, str]:
        """The class name of each module by path; "" is the model."""
        return {path: type(module).__name__ for path, module in self.capture.skeleton.named_modules()}
