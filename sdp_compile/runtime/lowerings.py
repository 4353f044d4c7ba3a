"""The captures behind a module's graphs, which are lowered again when the module gets another plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdp_compile.capture.devices import retarget_devices
from sdp_compile.capture.precision import autocast_of
from sdp_compile.errors import SDPError
from sdp_compile.ir.program import Capture, Precision, Program, copy_program
from sdp_compile.lowering import Lowered, lower
from sdp_compile.passes import Pass
from sdp_compile.planning.making import refitted
from sdp_compile.planning.plan import Plan
from sdp_compile.runtime.state.initialisation import slice_tensors
from sdp_compile.runtime.subnetwork import Subnetwork
from sdp_compile.structure.analysis import Analysis, analyse

_REMEMBERED = 16  # plans whose graphs are kept, so that a schedule which comes back to one need not lower again


@dataclass(frozen=True, eq=False)
class _Variant:
    """A capture for other dtypes, sizes or settings: what was found in it, and for which program."""

    analysis: Analysis
    key: str
    precision: Precision


class Lowerings:
    """Lowers what a module has captured.

    Args:
        lowered: The worker's first programs, and what they were made from.
    """

    def __init__(self, lowered: Lowered) -> None:
        self.lowered = lowered
        self._variants: dict[str, _Variant] = {}
        self._known = {_key(lowered.plan): lowered}

    def add(
        self, name: str, key: str, captured: Capture, precision: Precision, module: Subnetwork, device: torch.device
    ) -> tuple[Program, dict[str, Tensor]]:
        """Lowers another capture of the model.

        Args:
            name: What its program will be called.
            key: The key of its program in the capture.
            captured: The capture.
            precision: The dtypes that it is for.
            module: The module, which gets to know the constants of the capture.
            device: The device of its tensors.

        Returns:
            The worker's program, and the constants that only this program has.

        Raises:
            SDPError: If this capture does not fit the plan.
        """
        base, variant = module.capture, _Variant(analyse(captured), key, precision)
        new = {name: tensor for name, tensor in captured.state.items() if name not in base.state}
        program, tensors = self._lower(variant, self.lowered, new.keys(), device)
        constants = {name: captured.constants[name] for name in new}
        state, values = {**base.state, **new}, {**base.constants, **constants}
        vars(module)["capture"] = replace(base, state=state, constants=values)
        self._variants[name] = variant
        return program, tensors

    def lower(self, plan: Plan, passes: Sequence[Pass]) -> Lowered:
        """Returns the worker's first programs by another plan.

        Args:
            plan: The plan.
            passes: The passes that make the programs.

        Raises:
            SDPError: If the passes fail.
        """
        known = self._known.get(_key(plan))
        if known is None:
            known = lower(self.lowered.analysis, plan, self.lowered.rank, passes)
        return known

    def follow(self, lowered: Lowered, device: torch.device) -> tuple[dict[str, Program], dict[str, Tensor]]:
        """Takes over what `lower` has returned.

        Programs for other dtypes, sizes or settings that do not fit the plan are left out; a call that needs one of
        them captures it again, or says why it cannot be.

        Args:
            lowered: The first programs.
            device: The device of the module's tensors.

        Returns:
            All programs by name, and the constants that only later programs have.
        """
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[_key(lowered.plan)] = self.lowered = lowered
        programs = {key: copy_program(program) for key, program in lowered.programs.items()}
        for program in programs.values():
            retarget_devices(program.graph, lowered.analysis.capture.device, device)
        constants: dict[str, Tensor] = {}
        first = lowered.analysis.capture.state
        for name, variant in list(self._variants.items()):
            own = [one for one in variant.analysis.capture.state if one not in first]
            try:
                programs[name], tensors = self._lower(variant, lowered, own, device)
            except SDPError:
                del self._variants[name]
                continue
            retarget_devices(programs[name].graph, variant.analysis.capture.device, device)
            constants.update(tensors)
        return programs, constants

    def _lower(
        self, variant: _Variant, lowered: Lowered, names: Iterable[str], device: torch.device
    ) -> tuple[Program, dict[str, Tensor]]:
        analysis, captured = variant.analysis, variant.analysis.capture
        plan = refitted(lowered.plan, analysis, lowered.rank)
        with autocast_of(variant.precision, device):
            again = lower(analysis, plan, lowered.rank, lowered.passes, (variant.key,))
        state = {name: captured.state[name] for name in names}
        tensors = slice_tensors(again.holdings, replace(captured, state=state), {}, device)
        return again.programs[variant.key], tensors


def _key(plan: Plan) -> str:
    """Identifies a plan; two policies may give the workers the same units, and a schedule asks for the policy."""
    return f"{plan.digest} {plan.policy}"
